//! DeepSeek-V4.1: what its reference model holds by itself, its hash, short contexts, and files that are refused by name.

mod common;

use common::source::Source;
use common::{exact, find, json, nmse};
use tandem::gguf::{Gguf, Value};
use tandem::sample::{Params, Sampler};
use tandem::schedule::{Answer, Request, Scheduler};
use tandem::session::{self, Options, Session, Want};
use tandem::speculate::Speculation;
use tandem::talk::{GenParams, Writer};
use tandem::tape::Tape;
use tandem::text::{Reader, Tokenizer};

/// The reference model, if it is here.
fn source() -> Option<Source> {
    let path = find("models3/deepseek41.gguf");
    if path.is_none() {
        say!("skipped: the reference model deepseek41, which is not next to the checkout (../shared/oracle/models3)");
    }
    path.map(|p| Source::open("deepseek41", &p))
}

fn gguf(s: &Source) -> Gguf {
    Gguf::from_bytes(s.bytes(), "v41.gguf".as_ref()).unwrap()
}

fn prompt() -> Vec<u32> {
    common::ids(&json(&find("models3/deepseek41.tokens.json").unwrap())["prompt_ids"])
}

/// Logits after each token.
fn logits(s: &Source, prompt: &[u32], o: &Options) -> Vec<f32> {
    let mut session = Session::new(gguf(s), o).unwrap_or_else(|e| panic!("{e:#}"));
    session.feed(0, prompt, Want::All).unwrap().into_logits()
}

fn tape(s: &Source) -> anyhow::Result<Tape> {
    session::tape(&gguf(s), &exact())
}

/// The message of a file that is refused.
#[track_caller]
fn refusal(s: &Source) -> String {
    format!("{:#}", tape(s).expect_err("the file is refused"))
}

fn numbers(s: &Source, key: &str) -> Vec<u64> {
    let Some(Value::Arr(list)) = s.key(key) else { panic!("{key} is no list") };
    let number = |v: Value| match v {
        Value::U64(n) => n,
        Value::I32(n) => n as u64,
        Value::U32(n) => n as u64,
        other => panic!("{key}: {other:?}"),
    };
    (0..list.len()).map(|i| number(list.get(i).unwrap())).collect()
}

/// What breaking a rule does to the logits is in the reference's table: the test of all families (tests/oracle.rs, 1e-8) holds
/// each rule of which that is far more.
#[test]
fn every_rule_but_two_epsilons_shows_in_the_reference_logits() {
    let Some(path) = find("models3/deepseek41.json") else { return };
    let table = json(&path)["ablation_nmse"].clone();
    let broken: Vec<(String, f64)> =
        table.as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.as_f64().unwrap())).collect();
    assert!(broken.len() > 40, "{} rules", broken.len());
    let unseen: Vec<&str> = broken.iter().filter(|(_, e)| *e < 5e-4).map(|(k, _)| k.as_str()).collect();
    assert_eq!(unseen, ["hyper_connection.epsilon = norm eps", "norm eps 1e-6"], "those have a test of their own");
}

#[test]
fn both_epsilons_are_the_files_own() {
    let Some(s) = source() else { return };
    let (prompt, o) = (prompt(), exact());
    let own = logits(&s, &prompt, &o);
    // What the reference is off by with these values; rounding in f32 adds about 1e-12.
    for (key, value, off) in
        [("hyper_connection.epsilon", 1e-20f32, 7.3e-11), ("attention.layer_norm_rms_epsilon", 1e-6, 2.6e-12)]
    {
        let error = nmse(&own, &logits(s.clone().set(key, value), &prompt, &o));
        say!("{key} {value:e}: NMSE {error:.1e} ({off:.1e} in the reference)");
        assert!(error > off / 2.0 && error < off * 3.0, "{key}: {error:e}");
    }
}

/// The rows that the table is read at, by another way: the hash in 128 bits, on the prompt as a whole.
#[test]
fn table_rows_are_those_of_the_hash_in_whole_numbers() {
    let Some(s) = source() else { return };
    let prompt = prompt();
    let map = numbers(&s, "engram.token_map");
    let (multipliers, primes, offsets) =
        (numbers(&s, "engram.multipliers"), numbers(&s, "engram.primes"), numbers(&s, "engram.offsets"));
    let trace = json(&find("models3/deepseek41.trace.json").unwrap());
    for (site, layer) in [1, 4].into_iter().enumerate() {
        let mut ids: Vec<usize> = Vec::new();
        for p in 0..prompt.len() {
            let back = |n: usize| p.checked_sub(n).map_or(327, |at| map[prompt[at] as usize]) as u128;
            let mut hash = back(0) * multipliers[4 * site] as u128;
            for n in 1..4 {
                hash ^= back(n) * multipliers[4 * site + n] as u128;
                assert!(hash < 1 << 63, "the file's products stay below 2^63");
                let column = 6 * site + 2 * (n - 1);
                ids.extend([0, 1].map(|i| (hash % primes[column + i] as u128) as usize + offsets[column + i] as usize));
            }
        }
        let find = |name: String| trace.as_array().unwrap().iter().find(|t| t["name"] == name).unwrap();
        let want = find(format!("engram_ids-{layer}"));
        let ends = |v: &serde_json::Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as usize).collect();
        let [head, tail]: [Vec<usize>; 2] = [ends(&want["head"]), ends(&want["tail"])];
        assert_eq!((&ids[..4], &ids[ids.len() - 4..]), (&head[..], &tail[..]), "layer {layer}: as in the trace");

        let table = s.clone().tensor(&format!("blk.{layer}.engram_embd.weight")).floats();
        let rows: Vec<f32> = ids.iter().flat_map(|&id| table[16 * id..16 * (id + 1)].to_vec()).collect();
        let mut read = Vec::new();
        let mut look = |label: &str, values: &mut [f32], _: usize| {
            if label == format!("blk.{layer}.ngram") {
                read.extend_from_slice(values);
            }
        };
        let mut session = Session::new(gguf(&s), &exact()).unwrap();
        // Pieces that are shorter than the look-back too.
        for piece in [&prompt[..1], &prompt[1..3], &prompt[3..200], &prompt[200..]] {
            session.feed_observed(0, piece, Want::None, Some(&mut look)).unwrap();
        }
        assert!(read == rows, "layer {layer}: the rows that were read are these");
    }
}

#[test]
fn a_context_shorter_than_the_window_gives_the_same_logits() {
    let Some(s) = source() else { return };
    let prompt = prompt();
    let whole = logits(&s, &prompt[..60], &exact());
    for n in [1, 2, 5, 17, 30] {
        let short = logits(&s, &prompt[..n], &Options { n_ctx: Some(n), ..exact() });
        let error = nmse(&whole[..short.len()], &short);
        assert!(error < 1e-11, "{n} tokens: {error:e}");
    }
}

#[test]
fn a_sequence_that_begins_with_a_copied_prefix_looks_back_across_it() {
    let Some(s) = source() else { return };
    let prompt = prompt();
    let mut session = Session::new(gguf(&s), &Options { n_seq: 2, ..exact() }).unwrap();
    session.feed(0, &prompt[..201], Want::None).unwrap();
    session.feed(1, &prompt[7..60], Want::None).unwrap(); // something to be forgotten
    let saved = session.snapshot(0).unwrap();
    session.restore(1, &saved).unwrap();
    let [mut a, mut b] = [0, 1].map(|_| Vec::new());
    for t in &prompt[201..220] {
        a.extend(session.feed(0, &[*t], Want::Last).unwrap().into_logits());
        b.extend(session.feed(1, &[*t], Want::Last).unwrap().into_logits());
    }
    assert!(a == b, "both go on alike");
    let whole = logits(&s, &prompt[..220], &exact());
    let error = nmse(&whole[201 * session.n_vocab()..], &a);
    assert!(error < 1e-11, "{error:e}"); // a lost history is off by 2e-3 and more
}

#[test]
fn a_file_without_a_key_or_with_another_programs_is_refused_by_its_name() {
    let Some(s) = source() else { return };
    let needed = [
        "block_count",
        "context_length",
        "embedding_length",
        "attention.head_count",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.q_lora_rank",
        "attention.sliding_window",
        "attention.output_group_count",
        "attention.output_lora_rank",
        "attention.compress_ratios",
        "attention.compress_rope_freq_base",
        "attention.indexer.head_count",
        "attention.indexer.key_length",
        "attention.indexer.top_k",
        "attention.candidate_source_layer_id",
        "attention.candidate_block_size",
        "attention.candidate_topk_blocks",
        "expert_count",
        "expert_used_count",
        "expert_feed_forward_length",
        "expert_shared_count",
        "expert_weights_scale",
        "expert_weights_norm",
        "expert_gating_func",
        "swiglu_clamp_exp",
        "hyper_connection.count",
        "hyper_connection.sinkhorn_iterations",
        "hyper_connection.epsilon",
        "engram.layer_ids",
        "engram.head_count",
        "engram.key_length",
        "engram.max_ngram_size",
        "engram.pad_id",
        "engram.multipliers",
        "engram.primes",
        "engram.offsets",
        "engram.token_map",
    ];
    for key in needed {
        let said = refusal(s.clone().unset(key));
        assert!(said.contains(&format!("deepseek41.{key}")) && said.contains("missing"), "{key}: {said}");
    }
    for key in ["engram.head_dim", "engram.n_heads", "engram.pad_token_id", "engram.num_embeddings"] {
        let said = refusal(s.clone().set(key, 2u32));
        assert!(said.contains(&format!("deepseek41.{key}")), "{key}: {said}");
    }
    for name in ["engram_embed", "engram_kv", "engram_q_norm", "indexer_compressor_kv", "attn_compressor_ape"] {
        let name = format!("blk.4.{name}.weight");
        assert!(refusal(s.clone().add(&name, &[2, 2], &[0.0; 4])).contains(&name), "{name}");
    }
}

#[test]
fn keys_that_contradict_each_other_or_the_tensors_are_refused_by_name() {
    let Some(s) = source() else { return };
    let ratios = |list: [i32; 9]| list.to_vec();
    let shorter = |key: &str| {
        let list = numbers(&s, key);
        Value::from(list[..list.len() - 1].to_vec())
    };
    let cases: Vec<(&str, Value, &str)> = vec![
        ("attention.compress_ratios", ratios([0, 2, 2, 2, 2, 1, 1, 1, 1]).into(), "blk.1.attn_compressor_kv"),
        ("attention.compress_ratios", ratios([0, 0, 2, 1, 2, 1, 1, 1, 1]).into(), "compress_ratios"),
        ("attention.compress_ratios", ratios([0, 0, 2, 2, 4, 1, 1, 1, 1]).into(), "compress_ratios"),
        ("attention.compress_ratios", ratios([0, 0, 2, 2, 2, 2, 2, 2, 2]).into(), "attn_compressor_gate"),
        ("attention.compress_ratios", ratios([0, 0, 0, 2, 2, 1, 1, 1, 1]).into(), "attn_compressor_kv"),
        ("attention.candidate_source_layer_id", 6u32.into(), "candidate_source_layer_id"),
        ("attention.candidate_source_layer_id", 9u32.into(), "candidate_source_layer_id"),
        ("attention.candidate_topk_blocks", 1u32.into(), "candidate_topk_blocks"),
        ("attention.head_count_kv", 2u32.into(), "head_count_kv"),
        ("attention.value_length", 16u32.into(), "value_length"),
        ("expert_gating_func", 2u32.into(), "expert_gating_func"),
        ("hash_layer_count", 1u32.into(), "hash_layer_count"),
        ("engram.layer_ids", vec![1i32].into(), "engram.multipliers"),
        ("engram.layer_ids", vec![1i32, 5].into(), "blk.5.engram_embd"),
        ("engram.layer_ids", vec![1i32, 9].into(), "engram.layer_ids"),
        ("engram.layer_ids", vec![4i32, 1].into(), "engram.layer_ids"),
        ("engram.multipliers", shorter("engram.multipliers"), "engram.multipliers"),
        ("engram.primes", shorter("engram.primes"), "engram.primes"),
        ("engram.offsets", shorter("engram.offsets"), "engram.offsets"),
        ("engram.primes", vec![0u64; 12].into(), "engram.primes"),
        ("engram.offsets", vec![1500u64; 12].into(), "engram_embd"),
        ("engram.token_map", shorter("engram.token_map"), "engram.token_map"),
    ];
    for (key, value, named) in cases {
        let said = refusal(s.clone().set(key, value.clone()));
        assert!(said.contains(named), "{key} {value:?}: {said}");
    }
    let mut less = s.clone();
    less.take("blk.4.attn_compressor_gate.weight");
    assert!(refusal(&less).contains("blk.4.attn_compressor_gate"));
}

#[test]
fn without_candidate_keys_a_model_of_the_released_sizes_alone_restricts_them_and_it_is_said() {
    let Some(mut s) = source() else { return };
    for key in ["source_layer_id", "block_size", "topk_blocks"] {
        s.unset(&format!("attention.candidate_{key}"));
    }
    let notes = tape(&s).unwrap().notes;
    assert!(notes.len() == 1 && notes[0].contains("all rows"), "{notes:?}");
    assert!(tape(&source().unwrap()).unwrap().notes.is_empty());
}

#[test]
fn parts_that_are_not_computed_are_named_and_change_nothing() {
    let Some(s) = source() else { return };
    let mut more = s.clone();
    for name in ["mtp.0.attn_norm.weight", "v.blk.0.attn_q.weight", "mm.0.weight"] {
        more.add(name, &[4], &[1.0; 4]);
    }
    more.set("attention.kv_source_layer_ids", vec![2i32, 4, 5]).set("engram.compressed_vocab_size", 334u32);
    more.set("attention.index_source_layer_ids", vec![2i32, 4, 5, 7]);
    let tape = tape(&more).unwrap();
    for name in ["mtp.", "v.", "mm."] {
        assert!(tape.ignored.iter().any(|(prefix, _)| prefix == name), "{name}: {:?}", tape.ignored);
    }
    let unknown: Vec<_> = tape.unused_keys.iter().filter(|k| !k.known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(logits(&s, &prompt()[..40], &exact()) == logits(&more, &prompt()[..40], &exact()));
}

/// A list of another kind of number is read alike, and no list is cut.
#[test]
fn lists_of_any_whole_numbers_are_read_alike() {
    let Some(s) = source() else { return };
    let map: Vec<u32> = numbers(&s, "engram.token_map").into_iter().map(|n| n as u32).collect();
    let mut other = s.clone();
    other.set("engram.token_map", map);
    assert!(logits(&s, &prompt()[..40], &exact()) == logits(&other, &prompt()[..40], &exact()));
}

/// Rows that the steps of these labels gave while a prompt was read in batches of `n_batch`: of each batch.
fn rows_of(s: &Source, n_batch: usize, want: Want, labels: &[String]) -> Vec<Vec<usize>> {
    let mut session = Session::new(gguf(s), &Options { n_batch, ..exact() }).unwrap();
    let mut rows = vec![Vec::new(); labels.len()];
    let mut look = |label: &str, values: &mut [f32], width: usize| {
        if let Some(i) = labels.iter().position(|l| l == label) {
            rows[i].push(values.len() / width);
        }
    };
    session.feed_observed(0, &prompt(), want, Some(&mut look)).unwrap();
    rows
}

/// Layer 5 is the last that makes rows for others; windows are of 24 tokens, and the prompt has 400.
#[test]
fn of_the_layers_after_the_last_source_a_prompt_computes_its_end_alone() {
    let Some(s) = source() else { return };
    let attention: Vec<String> = (0..9).map(|l| format!("blk.{l}.attn")).collect();
    let whole = |n: usize| vec![n];
    let got = rows_of(&s, 512, Want::Last, &attention);
    let want = [400, 400, 400, 400, 400, 1 + 3 * 23, 1 + 2 * 23, 1 + 23, 1].map(whole);
    assert_eq!(got, want, "1 + 23 (8 - l) rows in layer l");
    let keys: Vec<String> = (4..9).map(|l| format!("blk.{l}.attn_kv")).collect();
    assert_eq!(rows_of(&s, 512, Want::Last, &keys), [400, 93, 70, 47, 24].map(whole), "23 more make the keys of each");
    let experts: Vec<String> = (4..9).map(|l| format!("blk.{l}.ffn_exps")).collect();
    assert_eq!(rows_of(&s, 512, Want::Last, &experts), [400, 70, 47, 24, 1].map(whole));

    // In batches the end is counted from the prompt's end.
    let got = rows_of(&s, 32, Want::Last, &attention);
    let sums: Vec<usize> = got.iter().map(|rows| rows.iter().sum()).collect();
    assert_eq!(sums, [400, 400, 400, 400, 400, 70, 47, 24, 1]);
    assert_eq!(got[5][..10], [0; 10], "nothing of the batches before it");
    // All logits need all rows, some need the rows before them.
    assert!(rows_of(&s, 512, Want::All, &attention).iter().all(|rows| rows[..] == [400]));
    let some = rows_of(&s, 512, Want::From(390), &attention);
    assert_eq!(some[5..], [79, 56, 33, 10].map(whole));
}

#[test]
fn what_is_left_out_changes_neither_logits_nor_states() {
    let Some(s) = source() else { return };
    let prompt = prompt();
    for (n_batch, n) in [(512, 370), (64, 370), (37, 201), (23, 100), (7, 40)] {
        let open = || Session::new(gguf(&s), &Options { n_batch, ..exact() }).unwrap();
        let (mut short, mut whole) = (open(), open());
        let n_vocab = short.n_vocab();
        let last = short.feed(0, &prompt[..n], Want::Last).unwrap().into_logits();
        let all = whole.feed(0, &prompt[..n], Want::All).unwrap().into_logits();
        assert!(last == all[(n - 1) * n_vocab..], "batches of {n_batch}: the last logits, bit for bit");
        let states = [&short, &whole].map(|s| {
            let mut bytes = Vec::new();
            s.save(0, &mut bytes).unwrap();
            // Without the checkpoints, which the short one has fewer of.
            bytes.truncate(s.saved_bytes(n, &[]));
            bytes
        });
        assert!(states[0] == states[1], "batches of {n_batch}: what is saved of the sequence");
        for t in &prompt[n..(n + 64).min(400)] {
            let [a, b] = [&mut short, &mut whole].map(|s| s.feed(0, &[*t], Want::Last).unwrap().into_logits());
            assert!(a == b, "batches of {n_batch}: and after it");
        }
        // Going back into the prompt reads what was left out again.
        for to in [n - 1, n - 2, n / 2] {
            short.rewind(0, to).unwrap();
            let again = short.feed(0, &prompt[to..n], Want::Last).unwrap().into_logits();
            let error = nmse(&last, &again);
            assert!(error < 1e-11, "batches of {n_batch}, back to {to}: {error:e}");
        }
    }
}

/// Layers 5 to 7 compute 70, 47 and 24 rows for a prompt's end; the last layer has the row whose logits are wanted.
#[test]
fn a_prompt_in_pieces_leaves_out_what_it_leaves_out_as_a_whole() {
    let Some(s) = source() else { return };
    let (prompt, n) = (&prompt()[..370], 370);
    let open = || Session::new(gguf(&s), &exact()).unwrap();
    let (mut whole, mut pieces) = (open(), open());
    let want = whole.feed(0, prompt, Want::Last).unwrap().into_logits();
    let mut got = Vec::new();
    for (i, piece) in prompt.chunks(37).enumerate() {
        let rest = n - 37 * i - piece.len();
        let want = if rest > 0 { Want::More(rest) } else { Want::Last };
        got = pieces.feed(0, piece, want).unwrap().into_logits();
        assert!(i == 0 || pieces.is_whole(0) == (rest == 0), "after piece {i}");
    }
    let error = nmse(&want, &got);
    assert!(error < 1e-11, "{error:e}");
    for s in [&whole, &pieces] {
        let rows = s.spared_rows();
        assert_eq!((rows.all, rows.computed), (3 * 370, 70 + 47 + 24));
    }
    let next = [&mut whole, &mut pieces].map(|s| s.feed(0, &[7], Want::Last).unwrap().into_logits());
    assert!(nmse(&next[0], &next[1]) < 1e-11, "the states are the same");
}

#[test]
fn in_the_middle_of_a_prompt_a_sequence_is_not_saved_but_goes_back() {
    let Some(s) = source() else { return };
    let prompt = prompt();
    let all = logits(&s, &prompt[..120], &exact());
    let mut session = Session::new(gguf(&s), &Options { n_seq: 2, ..exact() }).unwrap();
    session.feed(0, &prompt[..50], Want::None).unwrap();
    session.feed(0, &prompt[50..100], Want::More(270)).unwrap();
    let said = session.save(0, &mut Vec::new()).unwrap_err().to_string();
    assert!(said.contains("middle of a prompt"), "{said}");
    assert!(session.copy(0, 1, 100).is_err() && session.snapshot(0).is_err());
    assert_eq!(
        [100, 80, 49].map(|n| session.kept(0, n)),
        [50, 50, 0],
        "as rewinding does: from the last whole point before it"
    );
    assert_eq!(session.rewind(0, 80).unwrap(), 30, "the rest is read again");
    assert!(session.is_whole(0));
    let n_vocab = session.n_vocab();
    let got = session.feed(0, &prompt[80..120], Want::Last).unwrap().into_logits();
    let error = nmse(&all[119 * n_vocab..], &got);
    assert!(error < 1e-11, "{error:e}");
}

/// The second prompt that begins like another is made whole where they part, and the third goes on from there.
#[test]
fn prompts_that_begin_alike_are_read_again_once_and_then_known() {
    let Some(s) = source() else { return };
    let (p, open) = (prompt(), |n_seq| Session::new(gguf(&s), &Options { n_seq, ..exact() }).unwrap());
    let prompts = [p[..300].to_vec(), [&p[..250], &p[10..60]].concat(), [&p[..250], &p[100..150]].concat()];
    let tokenizer = Tokenizer::new(open(1).engine().gguf()).unwrap();
    let answers = |n_seq: usize, numbers: &[usize]| -> Vec<Answer> {
        let mut scheduler = Scheduler::new(open(n_seq), Speculation::off());
        let mut all = Vec::new();
        for (i, &number) in numbers.iter().enumerate() {
            let sampler = Sampler::new(Params { temperature: 0.0, ..Params::default() }, 1, Vec::new());
            let params = GenParams { limit: Some(3), ignore_eos: true, ..GenParams::default() };
            let prompt = prompts[number].clone();
            let writer = Writer::new(&tokenizer, sampler, None, Reader::plain(), params, &prompt);
            scheduler.add(Request { number, prompt, writer }).unwrap();
            while !scheduler.is_idle() && (i + 1 == numbers.len() || !scheduler.has_room()) {
                all.extend(scheduler.step().unwrap());
            }
        }
        all.sort_by_key(|a| a.number);
        all
    };
    let alone: Vec<_> = (0..3).map(|i| answers(1, &[i]).remove(0).generated.tokens).collect();
    for n_seq in [1, 3] {
        let got = answers(n_seq, &[0, 1, 2]);
        assert_eq!(got.iter().map(|a| a.known_tokens).collect::<Vec<_>>(), [0, 0, 250], "{n_seq} at once");
        for (a, alone) in got.iter().zip(&alone) {
            assert_eq!(&a.generated.tokens, alone, "request {} of {n_seq} at once", a.number);
        }
    }
}

/// Every 16384 tokens of a prompt. What that takes are 94 rows of layer 5, more than a batch has here.
#[test]
fn where_a_long_prompt_is_made_whole_on_the_way_it_can_be_gone_back_to() {
    let Some(s) = source() else { return };
    let (short, n, to) = (prompt(), 16384 + 100, 16384 + 6);
    let prompt: Vec<u32> = (0..n).map(|i| short[(i * 7 + i / 400) % short.len()]).collect();
    let o = Options { n_ctx: Some(n), n_batch: 64, ..exact() };
    let mut whole = Session::new(gguf(&s), &o).unwrap();
    let want = whole.feed(0, &prompt[..to + 1], Want::From(to - 1)).unwrap().into_logits();
    let mut session = Session::new(gguf(&s), &o).unwrap();
    session.feed(0, &prompt, Want::Last).unwrap();
    assert_eq!(session.rewind(0, to).unwrap(), 6, "from the place where it was whole");
    let got = session.feed(0, &prompt[to..to + 1], Want::Last).unwrap().into_logits();
    let error = nmse(&want[session.n_vocab()..], &got);
    assert!(error < 1e-11, "{error:e}");
}

#[test]
fn logits_from_a_token_on_are_those_of_all_whatever_the_batches() {
    let Some(s) = source() else { return };
    let prompt = prompt();
    let all = logits(&s, &prompt, &exact());
    for (n_batch, from) in [(512, 200), (64, 200), (32, 390), (16, 33), (37, 399)] {
        let mut session = Session::new(gguf(&s), &Options { n_batch, ..exact() }).unwrap();
        let got = session.feed(0, &prompt, Want::From(from)).unwrap().into_logits();
        let error = nmse(&all[from * session.n_vocab()..], &got);
        assert!(error < 1e-11, "batches of {n_batch}, from {from} on: {error:e}");
    }
}
