//! Models over two and three GPUs of different sizes: what one sends another is waited for, and memory is what was planned.

use std::process::{Command, Output};

use super::*;

/// Sizes of the devices in MB.
const SIZES: &str = "256,128,192";

/// The devices; None in a process that has one of them: it runs the test again in another, with `env`.
fn gpus(test: &str) -> Option<Vec<Arc<Gpu>>> {
    if !emu::load() || models(KINDS).is_empty() {
        return None;
    }
    if std::env::var("TANDEM_EMU_MEM_MB").as_deref() != Ok(SIZES) {
        let Output { status, stdout, stderr } = again(test, &[]);
        let text = [stdout, stderr].map(|t| String::from_utf8_lossy(&t).into_owned()).concat();
        assert!(status.success(), "{text}");
        return None;
    }
    let gpus: Vec<Arc<Gpu>> = Gpu::open_all(None).unwrap().into_iter().map(Arc::new).collect();
    gpus.iter().for_each(|gpu| gpu.join(&gpus).unwrap());
    assert_eq!(gpus.len(), 3);
    Some(gpus)
}

fn again(test: &str, env: &[(&str, &str)]) -> Output {
    let mut c = Command::new(std::env::current_exe().unwrap());
    c.args([&format!("several::{test}"), "--exact", "--nocapture"]).env("TANDEM_EMU_MEM_MB", SIZES);
    c.envs(env.iter().copied()).output().unwrap()
}

/// The logits of a prompt, whose last tokens are read one by one.
fn logits(s: &mut Session, prompt: &[u32]) -> Vec<f32> {
    let (text, rest) = prompt.split_at(prompt.len() - 6);
    let mut all = s.feed(0, text, Want::All).unwrap().into_logits();
    rest.iter().for_each(|t| all.extend(s.feed(0, &[*t], Want::All).unwrap().into_logits()));
    all
}

#[test]
fn layers_on_several_gpus_give_the_same_logits() {
    let Some(gpus) = gpus("layers_on_several_gpus_give_the_same_logits") else { return };
    let mut failed = Vec::new();
    // What crosses from layer to layer is one row, several streams, or a row and what another layer's attention reads.
    for r in models(&["deepseek4", "deepseek41", "glm5-next", "nemotron_h_moe", "qwen3moe"]) {
        let prompt = &r.prompt[..r.prompt.len().min(SHORT)];
        let truth = Truth::of(&r, prompt);
        // Layers in order, as they are placed; and every other one, so that each layer's values cross.
        for (n, in_order) in [(2, false), (3, true)] {
            let gguf = Gguf::open(&r.gguf).unwrap();
            let o = exact();
            let tape = session::tape(&gguf, &o).unwrap();
            let layers = tape.n_layers();
            let of = |l: usize| Place::Gpu(if in_order { l * n / layers } else { l % n } as u8);
            let plan = Plan::new(&tape, &|_, s: &Step| match s.op.gpu_refuses() {
                None if !named(s, "token_embd") => s.layer.map_or(Place::Gpu(n as u8 - 1), of),
                _ => Place::Cpu,
            });
            let crossing = |s: &&PlanStage| matches!(s, PlanStage::Copy(_, Place::Gpu(_), Place::Gpu(_)));
            assert!(plan.stages.iter().filter(crossing).count() >= n - 1, "{}: values cross", r.name);
            let mut s = Session::planned(gguf, tape, plan, &o, &gpus[..n]).unwrap();
            let (error, holds) = truth.holds(&logits(&mut s, prompt));
            say!("{:24} {n} GPUs, in order: {in_order:5}  NMSE {error:.1e}", r.name);
            if !holds {
                failed.push(format!("{} on {n}, in order: {in_order}: {error:.1e}", r.name));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn each_gpu_has_its_own_experts_and_takes_what_was_planned() {
    let Some(gpus) = gpus("each_gpu_has_its_own_experts_and_takes_what_was_planned") else { return };
    for r in models(&["qwen3moe", "gpt-oss"]) {
        let prompt = &r.prompt[..r.prompt.len().min(SHORT)];
        let truth = Truth::of(&r, prompt);
        for n in [2, 3] {
            let cache = CacheSize::Bytes(n * (250 << 10));
            let ask = Ask { cpu_moe: Some(usize::MAX), cache, split: vec![1.0; n], ..Ask::default() };
            let o = Options { ask, ..exact() };
            let free = || gpus.iter().map(|gpu| gpu.memory().unwrap().0).collect::<Vec<_>>();
            let (before, mut planned) = (free(), Vec::new());
            let gguf = Gguf::open_with(&r.gguf, &o.load).unwrap();
            let mut s = Session::hybrid(gguf, &o, &gpus[..n], |fit, _| {
                planned = fit.each.iter().map(|f| f.total()).collect();
                assert!(fit.layers_each().iter().all(|layers| *layers > 0), "{:?}", fit.layers_each());
                let cached = fit.plan.caches[..n].iter().filter(|c| c.slots > 0).count();
                assert!(cached >= 2, "{:?}", fit.plan.caches); // one may have the head alone
                Ok(())
            })
            .unwrap();
            for ((before, now), planned) in before.iter().zip(free()).zip(&planned) {
                let took = before - now;
                assert!(took <= *planned && took * 100 >= planned * 97, "{}: {took} bytes, {planned} planned", r.name);
            }
            let (error, holds) = truth.holds(&logits(&mut s, prompt));
            assert!(holds, "{} over {n} GPUs: NMSE {error:.1e}", r.name);
            let stats: Vec<_> = s.engine().devices().iter().map(|d| d.cache_stats()).collect();
            assert!(stats.iter().filter(|c| c.chosen > 0 && c.hits > 0).count() >= 2, "{stats:?}");
            drop(s);
            assert_eq!(free(), before, "{}: all is given back", r.name);
        }
    }
}

#[test]
fn a_wait_between_two_gpus_that_is_missing_is_found() {
    if !emu::load() || models(KINDS).is_empty() || std::env::var_os("TANDEM_EMU_DEAF").is_some() {
        return;
    }
    let env = [("TANDEM_TEST_MODEL", "qwen3moe"), ("TANDEM_EMU_DEAF", "1")];
    let test = "layers_on_several_gpus_give_the_same_logits";
    assert!(again(test, &env[..1]).status.success(), "with its waits it passes");
    assert!(!again(test, &env).status.success(), "without them it must not");
}
