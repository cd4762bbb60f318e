//! The engine against itself: chunks, places, rewinds, snapshots, several sequences, cache types.

mod common;

use std::collections::HashMap;

use common::{Reference, exact, nmse, reference, references, rows};
use tandem::gguf::Gguf;
use tandem::plan::{Place, Plan};
use tandem::quant::{self, QuantType, Rng};
use tandem::session::{self, Options, Output, Session, Want};
use tandem::tape::{Slot, Step, Tape};

fn open(r: &Reference, o: &Options) -> Session {
    Session::open(&r.gguf, o).unwrap_or_else(|e| panic!("{}: {e:#}", r.name))
}

/// Feeds the prompt in pieces of `n`; all logits.
fn in_pieces(s: &mut Session, prompt: &[u32], n: usize) -> Vec<f32> {
    prompt.chunks(n).flat_map(|c| s.feed(0, c, Want::All).unwrap().into_logits()).collect()
}

#[test]
fn a_prompt_read_whole_or_in_pieces_gives_the_same_logits() {
    for r in references() {
        let whole = open(&r, &exact()).feed(0, &r.prompt, Want::All).unwrap().into_logits();
        for n in [1, 3, 7, 37] {
            let pieces = in_pieces(&mut open(&r, &exact()), &r.prompt, n);
            let error = nmse(&whole, &pieces);
            say!("{:24} pieces of {n}: NMSE {error:.1e} (limit 1e-10)", r.name);
            assert!(error < 1e-10, "{}: pieces of {n} differ: {error:e}", r.name);
        }
    }
}

#[test]
fn any_split_between_the_cpu_and_its_twin_gives_bit_equal_logits() {
    let mut rng = Rng(11);
    for r in references() {
        let prompt = &r.prompt[..r.prompt.len().min(140)]; // past a 128-token block
        let alone = in_pieces(&mut open(&r, &exact()), prompt, 70);
        for round in 0..6 {
            let o = exact();
            let gguf = Gguf::open(&r.gguf).unwrap();
            let tape = session::tape(&gguf, &o).unwrap();
            // From nearly all CPU to nearly all Twin, drawn step by step.
            let draws: Vec<bool> = (0..tape.steps.len()).map(|_| rng.below(7) <= round).collect();
            let at = std::cell::Cell::new(0);
            let plan = Plan::new(&tape, &|_, _| {
                at.set(at.get() + 1);
                if draws[at.get() - 1] { Place::Twin } else { Place::Cpu }
            });
            let (copies, steps) = (plan.stages.len(), tape.steps.len());
            let split = in_pieces(&mut Session::planned(gguf, tape, plan, &o, &[]).unwrap(), prompt, 70);
            assert!(alone == split, "{}: split {round} ({copies} stages of {steps} steps) differs", r.name);
        }
        say!("{:24} 6 random splits bit-equal", r.name);
    }
}

#[test]
fn going_back_and_reading_again_is_as_if_it_never_was() {
    let mut rng = Rng(5);
    for r in references() {
        let straight = open(&r, &exact()).feed(0, &r.prompt, Want::All).unwrap().into_logits();
        let mut s = open(&r, &exact());
        let n_vocab = s.n_vocab();
        for _ in 0..4 {
            // Some of the prompt, then something else, then back to a random place on the common part.
            let have = s.tokens(0).len();
            let to = have + rng.below(r.prompt.len() - have);
            s.feed(0, &r.prompt[have..to], Want::None).unwrap();
            let junk: Vec<u32> = (0..1 + rng.below(40)).map(|_| rng.below(n_vocab) as u32).collect();
            s.feed(0, &junk, Want::None).unwrap();
            for _ in 0..rng.below(5) {
                s.feed(0, &[rng.below(n_vocab) as u32], Want::None).unwrap();
            }
            s.rewind(0, rng.below(to + 1)).unwrap();
        }
        let from = s.tokens(0).len();
        assert_eq!(s.tokens(0), &r.prompt[..from]);
        let rest = s.feed(0, &r.prompt[from..], Want::All).unwrap().into_logits();
        let error = nmse(&straight[from * n_vocab..], &rest);
        say!("{:24} after 4 detours, from {from}: NMSE {error:.1e} (limit 1e-10)", r.name);
        assert!(error < 1e-10, "{}: {error:e}", r.name);
    }
}

#[test]
fn a_snapshot_restored_in_a_new_session_goes_on_alike() {
    for r in references() {
        let cut = r.prompt.len() / 2 + 3;
        let mut a = open(&r, &exact());
        a.feed(0, &r.prompt[..cut], Want::None).unwrap();
        let snapshot = a.snapshot(0).unwrap();
        let want = a.feed(0, &r.prompt[cut..], Want::All).unwrap().into_logits();
        let mut b = open(&r, &exact());
        b.feed(0, &r.prompt[5..40], Want::None).unwrap(); // something to be forgotten
        b.restore(0, &snapshot).unwrap();
        assert_eq!(b.tokens(0), &r.prompt[..cut]);
        assert!(
            b.feed(0, &r.prompt[cut..], Want::All).unwrap().into_logits() == want,
            "{}: the restored session differs",
            r.name
        );
    }
}

#[test]
fn a_snapshot_of_another_cache_type_is_refused_and_changes_nothing() {
    let all = references();
    let mut a = open(&all[0], &exact());
    a.feed(0, &all[0].prompt[..20], Want::None).unwrap();
    let snapshot = a.snapshot(0).unwrap();
    let mut other = open(&all[0], &Options { type_k: quant::by_name("f16").unwrap(), ..exact() });
    other.feed(0, &all[0].prompt[4..9], Want::None).unwrap();
    let before = other.snapshot(0).unwrap();
    let error = other.restore(0, &snapshot).unwrap_err().to_string();
    assert!(error.contains("does not fit"), "{error}");
    assert!(other.snapshot(0).unwrap() == before);
}

#[test]
fn sequences_read_side_by_side_do_not_see_each_other() {
    for r in references() {
        let o = Options { n_seq: 3, ..exact() };
        let mut s = open(&r, &o);
        let n = 60;
        let others: Vec<u32> = r.prompt.iter().rev().copied().collect();
        s.feed(1, &others[..17], Want::None).unwrap();
        s.feed(0, &r.prompt[..n], Want::None).unwrap();
        s.feed(2, &others[5..30], Want::None).unwrap();
        let mut got = Vec::new();
        for i in 0..20 {
            // Several rows of different sequences and depths in one batch.
            let rows = [(2, others[i]), (0, r.prompt[n + i]), (1, others[i + 1])];
            got.extend(s.step(&rows, Want::Last).unwrap().swap_remove(1).into_logits());
        }
        let alone = open(&r, &exact()).feed(0, &r.prompt[..n + 20], Want::All).unwrap().into_logits();
        let error = nmse(&alone[n * s.n_vocab()..], &got);
        say!("{:24} among others: NMSE {error:.1e} (limit 1e-10)", r.name);
        assert!(error < 1e-10, "{}: {error:e}", r.name);
    }
}

/// Two answers under way, and a third prompt that is read in pieces between their tokens.
#[test]
fn a_prompt_that_arrives_midway_changes_no_bit_of_other_answers_nor_they_of_its() {
    for r in references() {
        let o = Options { n_seq: 3, ..exact() };
        let begun = || {
            let mut s = open(&r, &o);
            s.feed(0, &r.prompt[..20], Want::None).unwrap();
            s.feed(1, &r.prompt[5..30], Want::None).unwrap();
            s
        };
        let prompt: Vec<u32> = r.prompt[..66].iter().rev().copied().collect();
        let row = |i: usize| (&r.prompt[20 + i..21 + i], &r.prompt[30 + i..31 + i]);
        let (mut others, mut alone, mut mixed) = (begun(), begun(), begun());
        for (i, piece) in prompt.chunks(11).enumerate() {
            let (a, b) = row(i);
            let without = others.step(&[(0, a[0]), (1, b[0])], Want::Last).unwrap();
            let by_itself = alone.feed(2, piece, Want::Last).unwrap();
            let got = mixed.forward(&[(0, a, Want::Last), (2, piece, Want::Last), (1, b, Want::Last)]).unwrap();
            assert!(got[0] == without[0] && got[2] == without[1], "{}: piece {i} changed a running answer", r.name);
            assert!(got[1] == by_itself, "{}: running answers changed piece {i}", r.name);
            assert_eq!(mixed.tokens(2), &prompt[..11 * (i + 1)]);
        }
    }
}

#[test]
fn of_sequences_that_step_together_one_may_want_its_argmax_and_another_its_logits() {
    let r = &reference("qwen3moe").unwrap();
    let o = Options { n_seq: 4, ..exact() };
    let wants = [Want::Argmax, Want::Last, Want::None, Want::All];
    let begun = || {
        let mut s = open(r, &o);
        (0..4).for_each(|seq| drop(s.feed(seq, &r.prompt[seq..20 + seq], Want::None).unwrap()));
        s
    };
    let (mut all, mut mixed) = (begun(), begun());
    let rows: Vec<(usize, u32)> = (0..4).map(|seq| (seq, r.prompt[40 + seq])).collect();
    let logits: Vec<Vec<f32>> = all.step(&rows, Want::Last).unwrap().into_iter().map(Output::into_logits).collect();
    let parts: Vec<(usize, &[u32], Want)> =
        rows.iter().map(|(seq, t)| (*seq, std::slice::from_ref(t), wants[*seq])).collect();
    let got = mixed.forward(&parts).unwrap();
    let best = common::argmax(&logits[0]);
    assert_eq!(got[0], Output::Argmax { token: best, logit: logits[0][best as usize] });
    assert!(got[1] == Output::Logits(logits[1].clone()) && got[3] == Output::Logits(logits[3].clone()));
    assert_eq!(got[2], Output::Logits(Vec::new()));
}

#[test]
fn an_interrupted_call_has_read_no_single_token_whose_output_would_be_lost() {
    let r = &reference("qwen3moe").unwrap();
    let mut s = open(r, &Options { n_seq: 2, ..exact() });
    s.feed(0, &r.prompt[..9], Want::None).unwrap();
    s.stop_flag().store(true, std::sync::atomic::Ordering::SeqCst);
    let parts = [(0, &r.prompt[9..10], Want::Last), (1, &r.prompt[..30], Want::Last)];
    assert!(s.forward(&parts).unwrap_err().is::<session::Interrupted>());
    assert_eq!((s.tokens(0).len(), s.tokens(1).len()), (9, 0));
    s.forward(&parts).unwrap(); // the flag was taken back
    assert_eq!((s.tokens(0).len(), s.tokens(1).len()), (10, 30));
}

#[test]
fn progress_begins_with_nothing_never_falls_and_ends_with_all_tokens() {
    let r = &reference("qwen3moe").unwrap();
    let mut s = open(r, &Options { n_batch: 16, ..exact() });
    let mut seen = Vec::new();
    s.feed_with_progress(0, &r.prompt[..50], Want::Last, &mut |p| seen.push((p.total, p.read))).unwrap();
    assert!(seen.is_sorted() && seen.iter().all(|p| p.0 == 50), "{seen:?}");
    assert_eq!((seen[0].1, seen.last().unwrap().1), (0, 50));
    let within = seen.iter().any(|p| !p.1.is_multiple_of(16) && p.1 != 50);
    assert!(within, "steps inside a batch are seen: {seen:?}");
}

#[test]
fn smaller_cache_types_stay_close_to_the_exact_one() {
    for r in references() {
        let n = Session::open(&r.gguf, &exact()).unwrap().n_vocab();
        for (name, limit) in [("f16", 1e-5), ("q8_0", 3e-3)] {
            let ty = quant::by_name(name).unwrap();
            let o = Options { type_k: ty, type_v: ty, ..exact() };
            let mut s = match Session::open(&r.gguf, &o) {
                Ok(s) => s,
                Err(e) => {
                    // These tiny heads need not divide into blocks; that must be said, not rounded.
                    let text = format!("{e:#}");
                    assert!(name == "q8_0" && text.contains("is not a multiple of 32; use -ct"), "{}: {text}", r.name);
                    say!("{:24} {name}: refused: {text}", r.name);
                    continue;
                }
            };
            let all = s.feed(0, &r.prompt, Want::All).unwrap().into_logits();
            // A router or an indexer may choose otherwise at a few positions, so the middle position is judged.
            let got = rows(&all, n, &r.positions);
            let mut errors: Vec<f64> =
                r.logits.chunks_exact(n).zip(got.chunks_exact(n)).map(|(a, b)| nmse(a, b)).collect();
            errors.sort_by(f64::total_cmp);
            let middle = errors[errors.len() / 2];
            // Where choices tip at most positions, as in models that select few rows: what f16 caches do to the reference.
            let own = common::f16_noise(&r.info) * if name == "f16" { 1.0 } else { 3.0 };
            let limit = f64::max(limit, own);
            say!("{:24} {name}: middle NMSE {middle:.1e} (limit {limit:.0e})", r.name);
            assert!(middle < limit, "{} {name}: {middle:e}", r.name);
        }
    }
}

/// The step that computes a value, and the number of that output among the step's.
fn producer(tape: &Tape, slot: Slot) -> (String, usize) {
    let place = |s: &Step| s.outs.iter().position(|out| *out == slot).map(|i| (s.label.clone(), i));
    tape.steps.iter().find_map(place).expect("a step computes it")
}

/// Causal attention in f64 of rows of `heads` query heads to as many rows of `kv_heads` heads of keys and of values.
fn attention(q: &[f32], k: &[f32], v: &[f32], (heads, kv_heads, rows): (usize, usize, usize)) -> Vec<f32> {
    let dim = q.len() / rows / heads;
    let of = |x: &[f32], row: usize, head: usize, heads: usize| -> Vec<f64> {
        x[(row * heads + head) * dim..][..dim].iter().map(|&v| v as f64).collect()
    };
    let one = |row: usize, h: usize| {
        let (q, kv) = (of(q, row, h, heads), h * kv_heads / heads);
        let score =
            |j: usize| of(k, j, kv, kv_heads).iter().zip(&q).map(|(k, q)| k * q).sum::<f64>() / (dim as f64).sqrt();
        let scores: Vec<f64> = (0..=row).map(score).collect();
        let most = scores.iter().copied().fold(f64::MIN, f64::max);
        let shares: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let total: f64 = shares.iter().sum();
        let values: Vec<Vec<f64>> = (0..=row).map(|j| of(v, j, kv, kv_heads)).collect();
        let mix = move |c: usize| shares.iter().zip(&values).map(|(p, v)| p * v[c]).sum::<f64>() / total;
        (0..dim).map(|c| mix(c) as f32).collect::<Vec<f32>>()
    };
    (0..rows).flat_map(|row| (0..heads).map(move |h| (row, h))).flat_map(|(row, h)| one(row, h)).collect()
}

/// What a format keeps of rows: ggml's own rounding (`quant::formats::check::encode`), decoded by the scalar form.
fn kept(ty: &'static QuantType, rows: &[f32]) -> Vec<f32> {
    let (mut blocks, mut values) = (vec![0; ty.row_bytes(rows.len())], rows.to_vec());
    tandem::cpu::encode(ty, rows, &mut blocks);
    (ty.dequant)(&blocks, &mut values);
    values
}

#[test]
fn attention_over_a_cache_of_any_type_is_that_over_the_values_which_its_format_keeps() {
    // What the format's own error does to the logits of these tiny models, whose heads have 32 and 64 columns: about three
    // times what it is in the worst of them (qwen3moe, where it tips choices of experts; the others have a tenth of it).
    let limits = [
        ("bf16", 1e-4),
        ("q8_0", 3e-4),
        ("q5_1", 2e-2),
        ("q5_0", 2e-2),
        ("q4_1", 1e-1),
        ("q4_0", 1e-1),
        ("iq4_nl", 1e-1),
    ];
    for (name, heads, kv_heads) in [("qwen3moe", 4, 2), ("qwen35", 2, 1), ("qwen35moe", 4, 2)] {
        let r = reference(name).unwrap();
        let prompt = &r.prompt[..100];
        let plain = open(&r, &exact()).feed(0, prompt, Want::All).unwrap().into_logits();
        for (name, limit) in limits {
            let ty = quant::by_name(name).unwrap();
            let o = Options { type_k: ty, type_v: ty, ..exact() };
            let (mut seen, mut last) = (HashMap::new(), (String::new(), 0));
            let mut look = |label: &str, values: &mut [f32], _: usize| {
                last = (label.into(), if last.0 == label { last.1 + 1 } else { 0 });
                seen.insert(last.clone(), values.to_vec());
            };
            let got = open(&r, &o).feed_observed(0, prompt, Want::All, Some(&mut look)).unwrap().into_logits();
            let tape = session::tape(&Gguf::open(&r.gguf).unwrap(), &o).unwrap();
            let of = |slot: Slot| &seen[&producer(&tape, slot)];
            for step in tape.steps.iter().filter(|s| s.op.name() == "attend") {
                let stores = |s: &&Step| s.op.name() == "cache" && s.states == step.states;
                let cache = tape.steps.iter().find(stores).expect("a step that stores what this one reads");
                let (k, v) = (kept(ty, of(cache.ins[0])), kept(ty, of(cache.ins[1])));
                let want = attention(of(step.ins[0]), &k, &v, (heads, kv_heads, prompt.len()));
                // Sums in f32, and an exponential to two units in the last place; by matrix tiles 16 bits of every number.
                let limit = if tandem::cpu::attention::has_tiles() { 1e-9 } else { 1e-11 };
                let error = nmse(&want, of(step.outs[0]));
                assert!(error < limit, "{} {name} {}: {error:e}", r.name, step.label);
            }
            let error = nmse(&plain, &got);
            say!("{:24} {name}: NMSE {error:.1e} (limit {limit:.0e})", r.name);
            assert!(error > 0.0 && error < limit, "{} {name}: {error:e}", r.name);
        }
    }
}

#[test]
fn a_cache_type_that_heads_do_not_divide_into_is_refused_by_name() {
    let r = reference("gpt-oss").unwrap();
    for (k, v, says) in
        [("q4_0", "f16", "-ctk q4_0: the head size 16"), ("bf16", "q5_1", "-ctv q5_1: the head size 16")]
    {
        let [type_k, type_v] = [k, v].map(|name| quant::by_name(name).unwrap());
        let error = Session::open(&r.gguf, &Options { type_k, type_v, ..exact() }).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("multiple of 32; use -ct"), "{error}");
    }
}

#[test]
fn a_full_context_and_a_foreign_token_are_errors_that_change_nothing() {
    let r = &reference("qwen3moe").unwrap();
    let mut s = open(r, &Options { n_ctx: Some(10), ..exact() });
    s.feed(0, &r.prompt[..8], Want::None).unwrap();
    let full = s.feed(0, &r.prompt[..3], Want::Last).unwrap_err();
    assert!(full.is::<session::ContextFull>(), "{full}");
    assert!(full.to_string().contains("10 tokens is full: 8 are used and 3 more"), "{full}");
    let foreign = s.feed(0, &[1, u32::MAX], Want::Last).unwrap_err().to_string();
    assert!(foreign.contains("outside the vocabulary"), "{foreign}");
    assert_eq!(s.tokens(0), &r.prompt[..8]);
    let after = s.feed(0, &r.prompt[8..10], Want::Last).unwrap().into_logits();
    let straight = open(r, &exact()).feed(0, &r.prompt[..10], Want::Last).unwrap().into_logits();
    assert!(nmse(&straight, &after) < 1e-10);
}

#[test]
fn an_interrupted_prompt_leaves_the_finished_batches_and_goes_on_alike() {
    for r in references() {
        let o = Options { n_batch: 16, ..exact() };
        let straight = open(&r, &exact()).feed(0, &r.prompt[..104], Want::Last).unwrap().into_logits();
        for at in [40, 150, 280] {
            let mut s = open(&r, &o);
            s.feed(0, &r.prompt[..40], Want::None).unwrap();
            let stop = s.stop_flag();
            let mut steps = 0;
            let mut observer = |_: &str, _: &mut [f32], _: usize| {
                steps += 1;
                if steps == at {
                    stop.store(true, std::sync::atomic::Ordering::SeqCst);
                }
            };
            let done = s.feed_observed(0, &r.prompt[40..100], Want::Last, Some(&mut observer));
            let have = s.tokens(0).len();
            assert!(have == 100 || done.unwrap_err().is::<session::Interrupted>());
            assert!(have >= 40 && (have - 40).is_multiple_of(16) || have == 100);
            s.stop_flag().store(false, std::sync::atomic::Ordering::SeqCst); // raised with nothing left to stop
            let rest = s.feed(0, &r.prompt[have..104], Want::Last).unwrap().into_logits();
            assert!(nmse(&straight, &rest) < 1e-10, "{}: differs after an interruption at {have}", r.name);
        }
    }
}

/// A ring is full, then goes round: what a session does to a sequence must be as if it had only ever read what it keeps.
#[test]
fn a_full_ring_can_be_rewound_restored_and_shared_like_an_empty_one() {
    for r in references() {
        let (n_ctx, n_batch) = (1100, 16);
        let o = Options { n_ctx: Some(n_ctx), n_batch, n_seq: 2, ..exact() };
        let mut s = open(&r, &o);
        let n_vocab = s.n_vocab();
        let mut rng = Rng(23);
        let mut draw = |n: usize| (0..n).map(|_| rng.below(n_vocab) as u32).collect::<Vec<u32>>();
        let text = draw(700);
        s.feed(0, &text[..500], Want::None).unwrap();
        s.feed(1, &text[100..160], Want::None).unwrap();
        s.feed(0, &text[500..700], Want::None).unwrap();
        let whole = s.snapshot(0).unwrap();
        // Far beyond a window, a batch and the slack; then back past it, and then a little further back.
        s.feed(0, &draw(380), Want::None).unwrap();
        s.rewind(0, 702).unwrap();
        s.rewind(0, 697).unwrap();
        let after = |s: &mut Session, seq: usize, from: usize| {
            let logits = s.feed(seq, &text[from..700], Want::All).unwrap().into_logits();
            logits[logits.len() - 3 * n_vocab..].to_vec()
        };
        let want = after(&mut open(&r, &o), 0, 0);
        let near = |what: &str, got: &[f32]| {
            let error = nmse(&want, got);
            say!("{:24} {what}: NMSE {error:.1e} (limit 1e-10)", r.name);
            assert!(error < 1e-10, "{}, {what}: {error:e}", r.name);
        };
        near("back past a checkpoint", &after(&mut s, 0, 697));
        // What a restored sequence does not carry must not be believed to be there.
        s.restore(1, &whole).unwrap();
        s.rewind(1, 690).unwrap();
        near("restored, then back", &after(&mut s, 1, 690));
        s.rewind(0, 40).unwrap();
        assert_eq!(s.tokens(0), &text[..40]);
        near("back to the start", &after(&mut s, 0, 40));
    }
}

#[test]
fn two_parts_for_one_sequence_in_a_call_are_an_error_that_changes_nothing() {
    let r = &reference("qwen3moe").unwrap();
    let mut s = open(r, &Options { n_seq: 2, ..exact() });
    let error = s.step(&[(0, 1), (1, 2), (0, 3)], Want::Last).unwrap_err().to_string();
    assert!(error.contains("sequence 0 is given twice"), "{error}");
    assert!(s.tokens(0).is_empty() && s.tokens(1).is_empty());
}

#[test]
fn a_context_that_the_machine_cannot_hold_is_refused_with_both_numbers() {
    for r in references() {
        for n in [4_000_000_000, 5_000_000_000, usize::MAX] {
            let Err(e) = Session::open(&r.gguf, &Options { n_ctx: Some(n), ..exact() }) else {
                panic!("{}: a context of {n} tokens was believed", r.name)
            };
            let text = format!("{e:#}");
            let room = text.contains("GB of memory besides the weights, but") && text.contains(r.name.as_str());
            let counted = text.contains("that can be"); // positions and row numbers end before memory does
            assert!(text.contains(&format!("context of {n} tokens")) && (room || counted), "{text}");
            say!("{text}");
        }
        let many = Options { n_seq: 1 << 40, n_ctx: Some(512), ..exact() };
        let Err(e) = Session::open(&r.gguf, &many) else { panic!("{}: 2^40 sequences", r.name) };
        assert!(format!("{e:#}").contains("1099511627776 sequences of a context of 512 tokens needs"), "{e:#}");
    }
}
