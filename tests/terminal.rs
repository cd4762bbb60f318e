//! `tandem chat` as a person meets it: through a pseudo-terminal, judged by what is on the screen.

#![cfg(unix)]

mod common;

use std::io::{Read, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

const ROWS: u16 = 40;
const COLUMNS: u16 = 100;

/// Long enough for a busy machine; nothing waits so long that goes well.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal with the program in it.
struct Terminal {
    screen: Arc<Mutex<vt100::Parser>>,
    /// Everything that was written, escapes included.
    raw: Arc<Mutex<Vec<u8>>>,
    keys: Box<dyn Write + Send>,
    master: Box<dyn MasterPty + Send>,
    child: Box<dyn Child + Send + Sync>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder of one test, empty.
fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("terminal").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn size(rows: u16, cols: u16) -> PtySize {
    PtySize { rows, cols, pixel_width: 0, pixel_height: 0 }
}

fn wide(n: u16) -> NonZero<u16> {
    NonZero::new(n).unwrap()
}

impl Terminal {
    /// `tandem chat` with the demo model as JULIET, in the folder `home`.
    fn chat(home: &Path, more: &[&str]) -> Terminal {
        let template = root().join("demo/romeo.jinja");
        let first = ["chat", "--chat-template-file", template.to_str().unwrap(), "--seed", "3"];
        Terminal::start(home, &[&first[..], more].concat(), &[])
    }

    fn start(home: &Path, args: &[&str], env: &[(&str, &str)]) -> Terminal {
        Terminal::program(env!("CARGO_BIN_EXE_tandem"), home, args, env)
    }

    fn program(name: &str, home: &Path, args: &[&str], env: &[(&str, &str)]) -> Terminal {
        let pty = native_pty_system().openpty(size(ROWS, COLUMNS)).unwrap();
        let mut c = CommandBuilder::new(name);
        c.args(args);
        c.cwd(home);
        c.env("HOME", home);
        c.env("XDG_STATE_HOME", "");
        c.env("TERM", "xterm-256color");
        c.env("CUDA_VISIBLE_DEVICES", "");
        c.env_remove("NO_COLOR");
        env.iter().for_each(|(k, v)| c.env(k, v));
        let child = pty.slave.spawn_command(c).unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(wide(ROWS), wide(COLUMNS), 1000)));
        let raw = Arc::new(Mutex::new(Vec::new()));
        let (to, log) = (screen.clone(), raw.clone());
        let mut from = pty.master.try_clone_reader().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n) = from.read(&mut bytes) {
                if n == 0 {
                    return;
                }
                to.lock().unwrap().process(&bytes[..n]);
                log.lock().unwrap().extend_from_slice(&bytes[..n]);
            }
        });
        let keys = pty.master.take_writer().unwrap();
        Terminal { screen, raw, keys, master: pty.master, child }
    }

    fn screen(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    /// Everything that was written, escapes included.
    fn written(&self) -> String {
        String::from_utf8_lossy(&self.raw.lock().unwrap()).into_owned()
    }

    /// Whether what is typed would be shown by the terminal itself.
    fn echoes(&self) -> bool {
        let flags = format!("{:?}", self.master.get_termios().unwrap().local_flags);
        flags.split(|c: char| !c.is_ascii_alphanumeric()).any(|flag| flag == "ECHO")
    }

    /// Makes the window another size.
    fn resize(&self, columns: u16) {
        self.screen.lock().unwrap().screen_mut().set_size(wide(ROWS), wide(columns));
        self.master.resize(size(ROWS, columns)).unwrap();
    }

    /// Whether a text is on the screen, and all of it bold.
    fn is_bold(&self, text: &str) -> bool {
        let parser = self.screen.lock().unwrap();
        let rows: Vec<String> = parser.screen().rows(0, COLUMNS).collect();
        let Some((row, line)) = rows.iter().enumerate().find(|(_, line)| line.contains(text)) else { return false };
        let from = line[..line.find(text).unwrap()].chars().count();
        let cells = from..from + text.chars().count();
        cells.into_iter().all(|at| parser.screen().cell(row as u16, at as u16).is_some_and(vt100::Cell::bold))
    }

    /// The line that the cursor is in.
    fn line(&self) -> String {
        let parser = self.screen.lock().unwrap();
        let (row, _) = parser.screen().cursor_position();
        parser.screen().rows(0, COLUMNS).nth(row as usize).unwrap_or_default().trim_end().to_owned()
    }

    fn keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn(&Terminal) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < PATIENCE, "{what} did not come; the screen:\n{}", self.screen());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    fn sees(&self, text: &str) {
        self.until(text, |t| t.screen().contains(text));
    }

    /// The prompt is on the screen, with this text in it.
    #[track_caller]
    fn waits(&self, text: &str) {
        let line = format!("> {text}");
        self.until(&line, |t| t.line() == line.trim_end());
    }

    /// A message is typed, and the answer waited for.
    #[track_caller]
    fn says(&mut self, text: &str) {
        self.keys(text);
        self.waits(text);
        self.keys("\r");
        self.until("an answer", |t| t.line() == ">");
    }

    #[track_caller]
    fn leaves(&mut self, keys: &str) -> u32 {
        self.keys(keys);
        self.ends()
    }

    fn signal(&self, name: &str) {
        common::signal(name, self.child.process_id().unwrap());
    }

    /// The status with which it ends.
    #[track_caller]
    fn ends(&mut self) -> u32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.exit_code();
            }
            assert!(start.elapsed() < PATIENCE, "it did not end; the screen:\n{}", self.screen());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

/// A chat with a model that always says the same.
fn puppet(home: &Path, pieces: &[&str], more: &[&str], env: &[(&str, &str)]) -> Terminal {
    std::fs::write(home.join("puppet.gguf"), common::puppet::puppet(pieces, common::puppet::PLAIN)).unwrap();
    Terminal::start(home, &[&["chat", "-m", "puppet.gguf", "--temp", "0"], more].concat(), env)
}

/// Tokens that the last answer's prompt read, by /stats.
fn read_at_last(t: &Terminal) -> Option<usize> {
    t.screen().rsplit("last answer: ").next()?.split(' ').next()?.parse().ok()
}

#[test]
fn what_is_typed_is_answered_and_the_history_brings_it_back() {
    let home = folder("typed");
    let mut t = Terminal::chat(&home, &["-n", "20"]);
    t.waits("");
    t.sees("/help lists the commands");
    t.says("What light through yonder window breaks?");
    let first = t.screen();
    assert!(first.lines().filter(|l| !l.trim().is_empty()).count() > 4, "{first}");
    t.keys("\x1b[A"); // up
    t.waits("What light through yonder window breaks?");
    t.keys("\x15"); // Ctrl-U
    t.waits("");
    assert_eq!(t.leaves("\x04"), 0); // Ctrl-D
    let mut t = Terminal::chat(&home, &["-n", "5"]);
    t.waits("");
    t.keys("\x1b[A");
    t.waits("What light through yonder window breaks?"); // also in the next start
}

#[test]
fn a_message_of_several_lines_is_one_message() {
    let mut t = Terminal::chat(&folder("lines"), &["-n", "5"]);
    t.waits("");
    t.keys("one");
    t.keys("\x1b\r"); // Alt-Enter
    t.until("a second line", |t| t.screen().contains("> one") && t.line().is_empty());
    t.keys("two\\\r"); // a backslash goes on
    t.keys("three");
    t.until("a third line", |t| t.line() == "three");
    t.keys("\r");
    t.until("an answer", |t| t.line() == ">");
    t.keys("/undo\r");
    t.sees(r#"removed: "one\ntwo\nthree""#);
}

#[test]
fn ctrl_c_stops_an_answer_keeps_what_was_said_and_twice_at_the_prompt_leaves() {
    let home = folder("stop");
    // As long as the context, so that there is something to stop.
    let mut t = Terminal::chat(&home, &["-c", "60000", "--ignore-eos"]);
    t.waits("");
    t.keys("Speak on\r");
    t.until("the answer's beginning", |t| t.screen().trim().lines().count() > 8);
    t.keys("\x03");
    t.sees("(stopped: interrupted)");
    t.waits("");
    t.keys("/save kept\r");
    t.sees("(saved to kept)");
    let said = std::fs::read(home.join("kept")).unwrap();
    let head = String::from_utf8_lossy(&said[..said.len().min(20_000)]).into_owned();
    assert!(head.contains("Speak on") && head.contains("assistant"), "what was said so far counts");
    t.keys("half a line\x03");
    t.waits("");
    t.sees("again leaves the chat");
    assert_eq!(t.leaves("\x03"), 0);
}

#[test]
fn what_is_pasted_stays_as_it_is_and_what_is_no_text_is_left_out() {
    let mut t = Terminal::chat(&folder("pasted"), &["-n", "5"]);
    t.waits("");
    t.keys("\x1b[200~docker run \\\r  -it x\x1b[201~");
    t.until("the second line", |t| t.line() == "  -it x");
    t.keys("\r");
    t.until("an answer", |t| t.line() == ">");
    t.keys("/undo\r");
    t.sees(r#"removed: "docker run \\\n  -it x""#);
    t.keys.write_all(b"caf\xe9\r").unwrap();
    t.sees("not UTF-8");
    t.says("Still there?");
    t.keys("/stats\r");
    t.sees("1 turn;");
}

#[test]
fn ctrl_c_on_a_line_takes_the_line_back_and_what_was_to_be_edited_stays() {
    let mut t = Terminal::chat(&folder("back"), &["-n", "5"]);
    t.waits("");
    t.says("First");
    t.keys("half a line\x03");
    t.sees("again leaves the chat");
    t.waits("");
    t.keys("another");
    t.waits("another");
    t.keys("\x03"); // with something in it: not the second one
    t.waits("");
    t.keys("/edit\r");
    t.waits("First");
    t.keys("\x03");
    t.sees("are unchanged");
    t.waits("");
    t.says("/stats");
    t.sees("1 turn;");
    t.keys("\x03");
    t.until("a fourth notice", |t| t.screen().matches("again leaves the chat").count() > 3);
    t.waits("");
    assert_eq!(t.leaves("\x03"), 0);
}

#[test]
fn a_file_that_answers_go_to_has_the_answers_alone() {
    let home = folder("aside");
    let template = root().join("demo/romeo.jinja");
    let line = "exec \"$0\" chat --chat-template-file \"$1\" --seed 3 -n 5 > out";
    let args = ["-c", line, env!("CARGO_BIN_EXE_tandem"), template.to_str().unwrap()];
    let mut t = Terminal::program("sh", &home, &args, &[]);
    t.waits("");
    t.says("Who is there?");
    assert_eq!(t.leaves("\x04"), 0);
    let out = std::fs::read_to_string(home.join("out")).unwrap();
    assert!(!out.trim().is_empty() && !out.contains("Who is there") && !out.contains('\x1b'), "{out:?}");
}

#[test]
fn what_is_typed_ahead_is_said_line_by_line() {
    let mut t = Terminal::chat(&folder("ahead"), &["-c", "2000", "-n", "5"]);
    t.keys("First\rSecond\r/stats\r"); // while the model is loaded
    t.sees("2 turns;");
}

#[test]
fn a_file_is_only_written_over_by_the_conversation_that_it_holds() {
    let home = folder("files");
    let mut t = Terminal::chat(&home, &["-n", "5"]);
    t.waits("");
    t.says("Mine");
    t.says("/save mine");
    t.sees("(saved to mine)");
    t.says("More");
    t.says("/save mine");
    t.until("a second saving", |t| t.screen().matches("(saved to mine)").count() > 1);
    let mut t = Terminal::chat(&home, &["-n", "5"]);
    t.waits("");
    t.says("Another");
    t.says("/save mine");
    t.sees("not from this conversation");
    t.says("/load mine");
    t.sees("continuing after 2 turns");
    t.says("Further");
    t.says("/save mine");
    t.sees("(saved to mine)");
}

#[test]
fn ctrl_c_stops_the_reading_of_a_long_prompt_and_gives_the_message_back() {
    let home = folder("reading");
    let long = "But soft, what light through yonder window breaks? It is the east.\n".repeat(6000);
    std::fs::write(home.join("system"), &long).unwrap();
    let mut t = Terminal::chat(&home, &["-c", "400000", "-n", "5", "--system-prompt-file", "system"]);
    t.waits("");
    t.keys("Who art thou?\r");
    t.sees("reading the prompt");
    t.keys("\x03");
    t.sees("stopped while reading");
    t.waits("Who art thou?");
    t.keys("\x15/system\r");
    t.until("the prompt", |t| t.line() == ">");
    t.says("Who art thou?");
    assert!(!t.screen().contains("error"), "{}", t.screen());
}

#[test]
fn a_conversation_can_be_taken_back_answered_anew_edited_saved_and_loaded() {
    let home = folder("commands");
    let mut t = Terminal::chat(&home, &["-n", "12"]);
    t.waits("");
    t.says("First");
    t.says("Second");
    t.says("/stats");
    t.sees("2 turns");
    t.says("/save both");
    t.sees("(saved to both)");
    t.says("/undo");
    t.sees("removed: \"Second\"");
    t.says("/stats");
    t.sees("1 turn;");
    t.keys("/edit\r");
    t.waits("First");
    t.keys(", edited");
    t.waits("First, edited");
    t.keys("\r");
    t.until("an answer", |t| t.line() == ">");
    t.says("/regen");
    t.says("/clear");
    t.sees("(a new conversation)");
    t.says("/load both");
    t.sees("continuing after 2 turns");
    t.says("Third");
    t.says("/stats");
    t.sees("3 turns");
    t.says("/lod x");
    t.sees("/load?");
    t.says("/set temp 0.1");
    t.says("/set temp hot");
    t.sees("temp");
    t.keys("/un\t");
    t.waits("/undo");
    assert_eq!(t.leaves("\x15/exit\r"), 0);
}

#[test]
fn a_conversation_in_a_file_goes_on_where_it_was() {
    let home = folder("session");
    let mut t = Terminal::chat(&home, &["-n", "12", "--session", "talk"]);
    t.waits("");
    t.says("Remember me");
    assert_eq!(t.leaves("/exit\r"), 0);
    let mut t = Terminal::chat(&home, &["-n", "12", "--session", "talk"]);
    t.sees("continuing after 1 turn;");
    t.sees("\n> Remember me\n"); // the last turn, with its answer
    t.waits("");
    t.says("And now?");
    t.says("/stats");
    t.sees("2 turns");
    // Of the first turn nothing was read again: the second alone has some twenty tokens.
    assert!(read_at_last(&t).is_some_and(|n| (1..30).contains(&n)), "{}", t.screen());
}

#[test]
fn a_program_that_is_ended_from_outside_keeps_the_conversation() {
    let home = folder("ended");
    let args = ["-c", "60000", "--ignore-eos", "--session", "talk"];
    // Not on the screen, which a long last answer fills.
    let told = |t: &Terminal, text: &str| t.until(text, |t| t.written().contains(text));
    let begins = |t: &mut Terminal, text: &str| {
        t.waits("");
        t.keys(text);
        t.waits(text);
        // Lines that were written, since the screen may be full of the last answer; what is shown while a prompt is read
        // stays in one line.
        let lines = |t: &Terminal| t.written().matches('\n').count();
        let before = lines(t);
        t.keys("\r");
        t.until("the answer's beginning", |t| lines(t) > before + 5);
    };
    // In the middle of an answer.
    let mut t = Terminal::chat(&home, &args);
    begins(&mut t, "First");
    t.signal("TERM");
    assert_eq!(t.ends(), 143);
    // At the prompt.
    let mut t = Terminal::chat(&home, &args);
    told(&t, "continuing after 1 turn;");
    t.waits("");
    t.signal("TERM");
    assert_eq!(t.ends(), 143);
    // The editor sets the terminal back where it takes its own mode back.
    t.until("the terminal as it was", |t| {
        let raw = String::from_utf8_lossy(&t.raw.lock().unwrap()).into_owned();
        raw.rfind("\x1b[?2004l") > raw.rfind("\x1b[?2004h")
    });
    // Its window is closed.
    let mut t = Terminal::chat(&home, &args);
    told(&t, "continuing after 1 turn;");
    begins(&mut t, "Second");
    t.signal("HUP");
    assert_eq!(t.ends(), 129);
    let t = Terminal::chat(&home, &args);
    told(&t, "continuing after 2 turns;");
}

#[test]
fn what_is_thought_is_dim_and_can_be_left_out_and_nothing_is_under_no_color() {
    let home = folder("thought");
    let template = "{% for m in messages %}{{ m.content }}\n{% endfor %}<think>\n{# </think> #}";
    std::fs::write(home.join("think.jinja"), template).unwrap();
    let args = ["chat", "--chat-template-file", "think.jinja", "--seed", "3", "-n", "40", "--reasoning-budget", "8"];
    let raw = |t: &Terminal| String::from_utf8_lossy(&t.raw.lock().unwrap()).into_owned();
    let mut t = Terminal::start(&home, &args, &[]);
    t.waits("");
    t.says("Think");
    assert!(raw(&t).contains("\x1b[2m") && raw(&t).contains("\x1b[22m"), "{:?}", raw(&t));
    assert!(!t.screen().contains("think>"), "{}", t.screen());
    let shown = t.screen().split_whitespace().count();
    // The template drops what was thought; what is left of that answer was read while the next line was typed.
    std::thread::sleep(Duration::from_secs(1)); // as one who thinks about what to say
    t.says("Again");
    t.says("/stats");
    assert!(read_at_last(&t).is_some_and(|n| (1..20).contains(&n)), "{}", t.screen());
    let mut t = Terminal::start(&home, &[&args[..], &["--hide-reasoning"]].concat(), &[]);
    t.waits("");
    t.says("Think");
    assert!(raw(&t).contains("thinking 1 token, 0 s"), "{:?}", raw(&t));
    assert!(t.screen().split_whitespace().count() < shown, "{}", t.screen());
    let mut t = Terminal::start(&home, &args, &[("NO_COLOR", "1")]);
    t.waits("");
    t.says("Think");
    assert!(!raw(&t).contains("\x1b[2m") && !raw(&t).contains("\x1b[1m"), "{:?}", raw(&t));
}

#[test]
fn a_line_stays_whole_when_the_window_changes() {
    let mut t = Terminal::chat(&folder("window"), &["-n", "5"]);
    t.waits("");
    let line = "A line that is longer than the window will be after it was made as narrow as a column of verse";
    t.keys(line);
    t.waits(line);
    t.screen.lock().unwrap().screen_mut().set_size(wide(ROWS), wide(40));
    t.master.resize(size(ROWS, 40)).unwrap();
    let joined = |t: &Terminal| t.screen().lines().map(str::trim_end).collect::<String>().replace(' ', "");
    let whole = |line: &str| line.replace(' ', "");
    // No one types within the millisecond of the change, for which the line editor is not made.
    t.until("the line, wrapped", |t| joined(t).contains(&whole(line)));
    t.keys("!");
    t.until("the line goes on", |t| joined(t).contains(&whole(&format!("{line}!"))));
    t.keys("\r");
    t.until("an answer", |t| t.line() == ">");
}

#[test]
fn a_context_that_fills_up_says_so_and_drops_turns_only_when_told() {
    let home = folder("full");
    let mut t = Terminal::chat(&home, &["-c", "256", "-n", "60", "--ignore-eos"]);
    t.waits("");
    let mut asked = false;
    for i in 0..8 {
        let text = format!("Speak of the moon and of the sun, good number {i}");
        t.keys(&text);
        t.waits(&text);
        t.keys("\r");
        t.until("an answer or a question", |t| t.line() == ">" || t.line().contains("[y/n]"));
        if t.line().contains("[y/n]") {
            asked = true;
            break;
        }
    }
    assert!(asked, "{}", t.screen());
    t.sees("of 256 tokens used");
    t.sees("The context is full");
    t.keys("perhaps\r");
    t.sees("expected y or n");
    t.until("the question again", |t| t.line().ends_with("[y/n]"));
    t.keys("n\r");
    t.sees("nothing was changed");
    t.until("the message in the line", |t| t.line().starts_with("> Speak of the moon"));
    t.keys("\r");
    t.until("the question", |t| t.line().ends_with("[y/n]"));
    t.keys("and of the stars\r");
    t.until("the question again", |t| t.line().ends_with("[y/n]"));
    t.keys("y\r");
    t.waits("and of the stars"); // it is kept for the line after the answer
}

#[test]
fn without_a_verb_a_terminal_gets_a_chat() {
    let template = root().join("demo/romeo.jinja");
    let mut t = Terminal::start(&folder("bare"), &["--chat-template-file", template.to_str().unwrap(), "-n", "4"], &[]);
    t.waits("");
    t.says("Good morrow");
    assert_eq!(t.leaves("/exit\r"), 0);
}

#[test]
fn what_runs_and_what_each_answer_took_is_told_and_can_be_asked_for() {
    let template = root().join("demo/romeo.jinja");
    let args = ["chat", "--chat-template-file", template.to_str().unwrap(), "--seed", "3", "-n", "20"];
    // Over ssh the clipboard is the terminal's.
    let mut t = Terminal::start(&folder("told"), &args, &[("SSH_TTY", "/dev/pts/1")]);
    t.waits("");
    t.sees("Tandem demo: Shakespeare, Q4_K, 6.0 MB; 3 layers with 16 experts each, on the CPU\ncontext 512 tokens\n");
    t.says("Good morrow");
    t.sees("(stopped: reached -n 20)");
    t.sees(" tokens/s, 20 tokens, context ");
    t.sees(" of 512, first token after ");
    t.says("/tokens");
    t.sees("Good morrow\n");
    t.sees(" of 512 left");
    t.says("/retry");
    t.until("a second answer", |t| t.screen().matches("reached -n 20").count() == 2);
    t.says("/set temp 0.1");
    t.says("/set");
    t.until("one value a line", |t| t.screen().lines().filter(|l| l.trim().starts_with("top_")).count() > 2);
    t.until("the default", |t| {
        t.screen().lines().any(|l| l.trim().starts_with("*  temperature") && l.contains("(default 0.8)"))
    });
    t.says("/copy");
    t.sees("characters to the terminal's clipboard");
    assert!(t.written().contains("\x1b]52;c;"));
}

#[test]
fn an_answer_is_wrapped_at_words_and_its_markdown_styled_but_saved_as_it_was_written() {
    let pieces = [
        "# A plan",
        "\n\nThere",
        " are **seve",
        "ral** steps",
        " which",
        " all have",
        " to be taken before",
        " the night falls",
        "\n\n- the",
        " first of them",
        " is a long one, of many",
        " words\n* the",
        " second\n\n```",
        "sh\nls **.rs",
        " # a comment that is longer than the line",
        "\n``",
        "`\ndone",
    ];
    let home = folder("markdown");
    let mut t = puppet(&home, &pieces, &[], &[]);
    t.waits("");
    t.resize(30);
    t.says("Go");
    for line in [
        "There are several steps which",
        "all have to be taken before",
        "the night falls",
        "• the first of them is a long",
        "  one, of many words",
        "• the second",
        "ls **.rs # a comment that is longer than the line", // which the terminal itself breaks
        "done",
    ] {
        assert!(t.screen().lines().any(|l| l.trim_end() == line), "{line:?} in\n{}", t.screen());
    }
    assert!(t.is_bold("A plan") && t.is_bold("several") && !t.is_bold("steps"), "{}", t.screen());
    t.says("/save kept");
    t.sees("(saved to kept)");
    let kept = String::from_utf8_lossy(&std::fs::read(home.join("kept")).unwrap()).into_owned();
    assert!(kept.contains("are **several** steps"), "what is saved is what was written");
    t.says("/set markdown off");
    t.says("Again");
    t.sees("are **several** steps");
    assert_eq!(t.leaves("\x04"), 0);
    let mut t = puppet(&home, &pieces, &[], &[("NO_COLOR", "1")]);
    t.waits("");
    t.says("Go");
    t.sees("are **several** steps");
}

#[test]
fn while_thoughts_are_hidden_their_tokens_are_counted_in_place() {
    let pieces = ["<think>", "well", " I wonder", " what to say", "</think>", "Yes"];
    let mut t = puppet(&folder("hidden"), &pieces, &["--hide-reasoning"], &[]);
    t.waits("");
    t.says("Go");
    assert!(t.written().contains("thinking 1 token, 0 s"), "{:?}", t.written());
    assert!(!t.screen().contains("thinking ") && !t.screen().contains("wonder"), "{}", t.screen());
    t.sees("\nYes\n");
    t.sees(" of reasoning), context ");
    t.says("/set n_predict 3");
    t.says("Again");
    t.sees("(no answer: all 3 tokens were reasoning (stopped: reached -n 3); raise -n");
}

#[test]
fn a_long_paste_is_a_placeholder_in_the_line_and_whole_in_the_message() {
    let mut t = Terminal::chat(&folder("placeholder"), &["-n", "5", "-c", "8192"]);
    t.waits("");
    let text = "the quick brown fox jumps over the lazy dog\r".repeat(100);
    t.keys(&format!("\x1b[200~{text}\x1b[201~"));
    t.waits("[pasted 4,400 characters]");
    t.keys("\x7f"); // backspace takes all of it
    t.waits("");
    t.keys(&format!("see \x1b[200~{text}\x1b[201~"));
    t.waits("see [pasted 4,400 characters]");
    t.keys(" and say why");
    t.waits("see [pasted 4,400 characters] and say why");
    assert!(!t.written().contains("quick"), "the text was never drawn");
    t.keys("\r");
    t.until("an answer", |t| t.line() == ">");
    t.keys("/edit\r");
    t.waits("see [pasted 4,400 characters] and say why");
    t.keys("\x03");
    t.sees("are unchanged");
    t.keys("/undo\r");
    t.sees("removed: \"see the quick brown fox");
}

#[test]
fn a_file_goes_into_a_message_by_read_and_by_its_name_after_an_at_sign() {
    let home = folder("attached");
    std::fs::write(home.join("notes.txt"), "The moon is made of cheese.\n").unwrap();
    let mut t = Terminal::chat(&home, &["-n", "5"]);
    t.waits("");
    t.keys("/read no\t");
    t.waits("/read notes.txt");
    t.keys("\r");
    t.sees("> [notes.txt: 46 characters]");
    t.until("the next line of the message", |t| t.line().is_empty());
    t.keys("Is it?\r");
    t.until("an answer", |t| t.line() == ">");
    t.says("/undo");
    t.sees("removed: \"notes.txt:\\n```\\nThe moon is made of cheese.\\n```\\nIs it?\"");
    t.keys("Sum up @no\t");
    t.waits("Sum up @notes.txt");
    t.keys(", or @none.txt\r");
    t.sees("(notes.txt: 46 characters go with the message)");
    t.sees("(@none.txt: no such file; it is sent as it is)");
    t.until("an answer", |t| t.line() == ">");
    t.says("/undo");
    t.sees("cheese.\\n```\\n\\nSum up");
    t.says("/read none");
    t.sees("cannot read none");
}

#[test]
fn what_is_typed_during_an_answer_is_kept_for_the_next_line_and_the_terminal_is_put_back() {
    let mut t = Terminal::chat(&folder("echo"), &["-c", "60000", "--ignore-eos"]);
    t.waits("");
    t.keys("Speak on\r");
    let lines = |t: &Terminal| t.screen().trim().lines().count();
    t.until("the answer's beginning", |t| lines(t) > 12);
    t.keys("zounds");
    std::thread::sleep(Duration::from_millis(200)); // it would be on the screen by now
    assert!(!t.screen().contains("zounds") && !t.echoes(), "{}", t.screen());
    // Ctrl-Z gives the shell a terminal that echoes, and the answer goes on afterwards.
    t.keys("\x1a");
    let state =
        |t: &Terminal| std::fs::read_to_string(format!("/proc/{}/stat", t.child.process_id().unwrap())).unwrap();
    t.until("the stop", |t| state(t).rsplit_once(')').unwrap().1.trim_start().starts_with('T'));
    assert!(t.echoes());
    t.signal("CONT");
    t.until("the answer goes on", |t| !t.echoes());
    t.keys("\x03");
    t.waits("zounds");
    assert_eq!(t.leaves("\x15/exit\r"), 0);
    assert!(t.echoes());
}

#[test]
fn a_conversation_goes_on_with_another_model() {
    let home = folder("switch");
    std::fs::write(home.join("other.gguf"), common::puppet::puppet(&["No", ", never"], common::puppet::PLAIN)).unwrap();
    let mut t = puppet(&home, &["Yes", ", always"], &["--session", "talk"], &[]);
    t.waits("");
    t.says("Will you?");
    t.sees("\nYes, always\n");
    t.says("/model none.gguf");
    t.sees("/model none.gguf: ");
    t.says("/model");
    t.sees("3 layers with 8 experts each, on the CPU");
    t.says("/model other.gguf");
    t.sees("(the conversation goes on; this model reads it with the next message)");
    t.says("And now?");
    t.sees("\nNo, never\n");
    t.says("/stats");
    t.sees("2 turns;");
    t.signal("TERM"); // the signals reach the model that runs now
    assert_eq!(t.ends(), 143);
    let t = Terminal::start(&home, &["chat", "-m", "other.gguf", "--session", "talk"], &[]);
    t.sees("continuing after 2 turns;");
    t.sees("\nNo, never\n");
}

#[test]
fn a_gpu_that_is_lost_ends_no_chat_and_the_cpu_goes_on_if_it_is_asked_to() {
    let Some(library) = common::emu::library() else { return };
    let env = [("LD_LIBRARY_PATH", library.parent().unwrap().to_str().unwrap()), ("TANDEM_EMU_FAULT_AT", "2200")]; // 1,800 of them measure
    let template = root().join("demo/romeo.jinja");
    let args = ["chat", "--chat-template-file", template.to_str().unwrap(), "--seed", "3", "-n", "16", "-cmoe"];
    let mut t = Terminal::start(&folder("lost"), &args, &env);
    t.waits("");
    t.keys("Good morrow\r");
    t.sees("the GPU was lost");
    t.sees("[y/n]");
    t.keys("n\r");
    t.sees("(the conversation is unchanged");
    t.keys("\x15/retry\r");
    t.until("the question again", |t| t.screen().matches("[y/n]").count() == 2);
    t.keys("y\r");
    t.sees("(the CPU goes on from here");
    t.keys("\x15");
    t.waits("");
    t.says("Who art thou?");
    assert!(!t.screen().rsplit("> Who art thou?").next().unwrap().contains("the GPU was lost"), "{}", t.screen());
    assert_eq!(t.leaves("\x04"), 0);
}
