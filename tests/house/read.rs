//! Rust files as the rules of the house read them: by plain text analysis, with comments and strings blanked, so that
//! every line keeps its number.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use regex::Regex;

/// Every Rust file under `dir`, as (path from the crate's root, contents).
pub(crate) fn sources(dir: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut todo, mut list) = (vec![root.join(dir)], Vec::new());
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name: PathBuf = path.strip_prefix(root).unwrap().into();
            list.push((name.display().to_string(), std::fs::read_to_string(&path).unwrap()));
        }
    }
    list.sort();
    list
}

/// Replaces everything but line ends by blanks.
fn blank(text: &str) -> String {
    text.bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect()
}

/// A file's text without comments, and its code: the same without what strings hold. Both keep the place of every byte.
pub(crate) fn strip(text: &str) -> (String, String) {
    let token = Regex::new(
        r##"(?xs) (?<comment> //[^\n]* | /\*.*?\*/ )
          | \b[bc]?r"[^"]*" | \b[bc]?r\#".*?"\# | \b[bc]?r\#\#".*?"\#\#
          | "(?:\\.|[^"\\])*" | '(?:\\u\{[0-9a-fA-F]+\}|\\x..|\\.|[^'\\\n])'"##,
    );
    let token = token.unwrap();
    let code = token.replace_all(text, |c: &regex::Captures<'_>| blank(&c[0])).into_owned();
    let plain = token.replace_all(text, |c: &regex::Captures<'_>| match c.name("comment") {
        Some(comment) => blank(comment.as_str()),
        None => c[0].to_owned(),
    });
    (plain.into_owned(), code)
}

/// Where the block or item ends that begins at `from`: after the brace that closes its first one, or after its `;`.
pub(crate) fn item_end(code: &str, from: usize) -> usize {
    let (mut braces, mut brackets) = (0i32, 0i32);
    for (i, b) in code.bytes().enumerate().skip(from) {
        match b {
            b'(' | b'[' => brackets += 1,
            b')' | b']' => brackets -= 1,
            b'{' => braces += 1,
            b'}' => braces -= 1,
            _ => {}
        }
        if (b == b'}' && braces == 0) || (b == b';' && braces == 0 && brackets == 0) {
            return i + 1;
        }
    }
    code.len()
}

/// The line number of a place in a text.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// A file as the rules read it.
pub(crate) struct File {
    pub(crate) path: String,
    /// Its text without comments and without what only tests compile.
    pub(crate) plain: String,
    /// That text without what strings hold.
    pub(crate) code: String,
}

/// Every file under src that is not compiled for tests alone.
pub(crate) fn files() -> Vec<File> {
    let test = Regex::new(r"#\[cfg\((?:all\()?test\b[^\]]*\]").unwrap();
    let module = Regex::new(r"^\s*(?:pub(?:\([a-z]+\))? )?mod (\w+);").unwrap();
    let (mut list, mut only_tests) = (Vec::new(), BTreeSet::new());
    for (path, text) in sources("src") {
        let (mut plain, mut code) = strip(&text);
        while let Some(found) = test.find(&code) {
            let (from, end) = (found.start(), item_end(&code, found.end()));
            if let Some(name) = module.captures(&code[found.end()..end]) {
                only_tests.insert(file_of(&[&module_of(&path)[..], &[name[1].to_owned()]].concat()));
            }
            for text in [&mut plain, &mut code] {
                text.replace_range(from..end, &blank(&text[from..end]));
            }
        }
        list.push(File { path, plain, code });
    }
    list.retain(|f| !only_tests.contains(&f.path.replace("/mod.rs", ".rs")));
    list
}

/// The path of the module that a file is: src/quant/act.rs is quant, act.
fn module_of(path: &str) -> Vec<String> {
    let rest = path.strip_prefix("src/").unwrap().trim_end_matches(".rs").trim_end_matches("/mod");
    rest.split('/').filter(|part| *part != "lib").map(String::from).collect()
}

/// The file of a module, if it is no folder's mod.rs.
pub(crate) fn file_of(module: &[String]) -> String {
    format!("src/{}.rs", module.join("/"))
}

/// A name that a file imports: where from, and what it is called here. Children of the file see it too, public or not.
struct Import {
    path: Vec<String>,
    name: String,
}

/// What the `use` items of a file take in, their trees taken apart; and the code without those items.
fn imports(code: &str) -> (Vec<Import>, String) {
    fn leaves(tree: &str, path: &[String], out: &mut Vec<Import>) {
        let tree = tree.trim();
        if let Some(open) = tree.find('{') {
            let prefix = tree[..open].split("::").map(str::trim).filter(|p| !p.is_empty()).map(String::from);
            let path: Vec<String> = path.iter().cloned().chain(prefix).collect();
            let (mut depth, mut from, inner) = (0, 0, &tree[open + 1..tree.rfind('}').unwrap()]);
            for (i, b) in inner.bytes().enumerate().chain([(inner.len(), b',')]) {
                match b {
                    b'{' => depth += 1,
                    b'}' => depth -= 1,
                    b',' if depth == 0 => {
                        leaves(&inner[from..i], &path, out);
                        from = i + 1;
                    }
                    _ => {}
                }
            }
        } else if !tree.is_empty() {
            let (from, alias) = tree.split_once(" as ").map_or((tree, None), |(from, to)| (from, Some(to.trim())));
            let parts = from
                .split("::")
                .map(|p| p.trim().to_owned())
                .filter(|p| !p.is_empty() && p != "self" || path.is_empty());
            let path: Vec<String> = path.iter().cloned().chain(parts).collect();
            let name = alias.unwrap_or_else(|| path.last().unwrap()).to_owned();
            out.push(Import { path, name });
        }
    }
    let item = Regex::new(r"(?s)\b(?:pub(?:\([^)]*\))?\s+)?use\s+([^;]+);").unwrap();
    let mut list = Vec::new();
    for found in item.captures_iter(code) {
        leaves(&found[1], &[], &mut list);
    }
    (list, item.replace_all(code, " ").into_owned())
}

/// The modules of the program: what each takes in, and the paths that it writes out.
pub(crate) struct Modules {
    imports: BTreeMap<Vec<String>, Vec<Import>>,
    paths: BTreeMap<Vec<String>, Vec<Vec<String>>>,
}

impl Modules {
    pub(crate) fn read() -> Modules {
        let path = Regex::new(r"\b\w+(?:\s*::\s*\w+)+").unwrap();
        let mut modules = Modules { imports: BTreeMap::new(), paths: BTreeMap::new() };
        for file in files() {
            let (imports, code) = imports(&file.code);
            let written = |text: &str| text.split("::").map(|part| part.trim().to_owned()).collect();
            modules.paths.insert(module_of(&file.path), path.find_iter(&code).map(|p| written(p.as_str())).collect());
            modules.imports.insert(module_of(&file.path), imports);
        }
        modules
    }

    /// The module that a path leads to from `here`, or that defines the item that it leads to; None for other crates.
    /// A name that a module only imports is followed to where it is defined.
    fn target(&self, here: &[String], path: &[String], depth: u32) -> Option<Vec<String>> {
        if depth > 8 {
            return None; // a name that is imported under itself
        }
        let (mut at, mut rest) = (here.to_vec(), path);
        let mut anchored = false;
        while let Some((first, more)) = rest.split_first() {
            match first.as_str() {
                "crate" => at.clear(),
                "super" => drop(at.pop()),
                "self" => {}
                _ => break,
            }
            (rest, anchored) = (more, true);
        }
        while let Some((name, more)) = rest.split_first() {
            let child = [&at[..], std::slice::from_ref(name)].concat();
            let passed = |i: &&Import| i.name == *name && i.path != *path;
            if self.imports.contains_key(&child) {
                at = child;
            } else if let Some(import) = self.imports.get(&at)?.iter().find(passed) {
                let path = [&import.path[..], more].concat();
                return self.target(&at, &path, depth + 1);
            } else {
                return anchored.then_some(at);
            }
            (rest, anchored) = (more, true);
        }
        Some(at)
    }

    /// Which other files of its own top-level module each file reads, but for the folders that it is in and the files of
    /// its own folder: a mod.rs is the face of its folder, and names what is in it.
    pub(crate) fn edges(&self) -> BTreeSet<(Vec<String>, Vec<String>)> {
        let mut edges = BTreeSet::new();
        for (here, imports) in &self.imports {
            let all = imports.iter().map(|i| &i.path).chain(&self.paths[here]);
            for to in all.filter_map(|path| self.target(here, path, 0)) {
                let kin = here.starts_with(&to) || to.starts_with(here);
                if !kin && here.first() == to.first() {
                    edges.insert((here.clone(), to));
                }
            }
        }
        edges
    }
}
