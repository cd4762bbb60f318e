//! What is said of layers that belong together, and of layers on several GPUs.

use super::*;

#[test]
fn of_layers_that_share_rows_or_leave_prompts_out_it_is_said_which_and_what_is_not_used_takes_a_line() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("v41");
    std::fs::create_dir_all(&dir).unwrap();
    let mix = "MXFP4,attn=Q8_0".parse().unwrap();
    let synth = model::Synth { layers: None, mix, seed: 1, vocab: None, holes: model::Holes::All };
    let path = synth.write("deepseek-v4.1-flash", None, &dir.join("header.gguf")).unwrap()[0].0.clone();
    let args = [path.to_str().unwrap(), "--vram", "24GB", "--ram", "256GB", "--drive-gbps", "3"];
    let text = explain(&args).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(text.matches("Not used:").count(), 1, "{text}");
    for words in [
        "Not used: 40 tensors blk.N.exp_probs_b_vl.bias",
        "rather than a copy of the rows: 2 to 7; 8 to 13; 14 to 19; 20 to 39.",
        "7.9 billion of the parameters: all of the layers before 20, and what layer 20 keeps of every token.",
    ] {
        assert!(text.contains(words), "{words} is not in {text}");
    }
}

#[test]
fn layers_go_to_several_gpus_in_order_and_fill_each_to_the_same_share() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpus");
    std::fs::create_dir_all(&dir).unwrap();
    let mix: model::Mix = "Q4_K_M".parse().unwrap();
    for shape in ["qwen3.5-122b-a10b", "gpt-oss-120b"] {
        let synth =
            model::Synth { layers: None, mix: mix.clone(), seed: 1, vocab: Some(1024), holes: model::Holes::All };
        let path = synth.write(shape, None, &dir.join("header.gguf")).unwrap()[0].0.clone();
        let gguf = Gguf::open(&path).unwrap();
        let mut o = Options { n_ctx: Some(32768), n_batch: 1024, n_output_rows: Some(1), ..Options::default() };
        o.ask.batch_up_to = Some(plan::LARGEST_BATCH);
        let fit = |budgets: &[usize], ask: &Ask| {
            let gib: Vec<usize> = budgets.iter().map(|n| n << 30).collect();
            plan::fit(session::tape(&gguf, &o).unwrap(), ask, &gib, session::shape(&gguf, &o).unwrap()).unwrap()
        };
        for budgets in [&[24, 12][..], &[12, 24], &[16, 16, 16], &[24, 1]] {
            let p = fit(budgets, &o.ask);
            let layers = p.layers_each();
            say!("{shape} in {budgets:?} GiB: {layers:?}, {}", p.describe());
            assert_eq!(layers.iter().sum::<usize>(), p.gpu_layers, "{shape}: {layers:?}");
            let of_layer = |l: usize| {
                let here = p.tape.steps.iter().zip(&p.plan.places).filter(|(s, _)| s.layer == Some(l));
                here.filter_map(|(_, place)| if let Place::Gpu(n) = place { Some(*n) } else { None })
                    .collect::<Vec<_>>()
            };
            let gpus: Vec<u8> = (0..p.layers).flat_map(of_layer).collect();
            assert!(gpus.is_sorted(), "{shape}: the layers are in the order of the GPUs");
            for (each, gib) in p.each.iter().zip(budgets) {
                assert!(each.needed() <= gib << 30, "{shape}: {each:?} in {gib} GiB");
                let share = each.total() as f64 / (gib << 30) as f64;
                assert!(*gib < 12 || share > 0.9, "{shape}: {share} of {gib} GiB are used");
            }
            let rows = p.shape.n_batch;
            let crossing = |s: &&PlanStage| matches!(s, PlanStage::Copy(_, Place::Gpu(_), Place::Gpu(_)));
            let hops = p.plan.stages.iter().filter(crossing).count();
            assert!(hops <= 3 * (p.plan.gpus().count() - 1), "{shape}: {hops} values of {rows} rows cross");
            // The flags that it names ask for the same.
            let ask = Ask { split: layers.iter().map(|n| *n as f64).collect(), ..o.ask.clone() };
            if layers.iter().all(|n| *n > 0) {
                assert_eq!(fit(budgets, &ask).plan.places, p.plan.places, "{shape}: -ts {layers:?}");
            }
        }
        let more = Ask { split: vec![1.0, 1.0, 2.0], ..o.ask.clone() };
        assert_eq!(
            fit(&[16, 16], &more).layers_each()[0].abs_diff(fit(&[16, 16], &more).layers_each()[1]),
            1,
            "{shape}"
        );
        let none = Ask { split: vec![0.0, 0.0, 2.0], ..o.ask.clone() };
        assert_eq!(
            fit(&[16, 16], &none).layers_each(),
            fit(&[16, 16], &o.ask).layers_each(),
            "{shape}: no GPU has a share"
        );
        let alone = fit(&[400, 100], &o.ask);
        assert!(alone.layers_each()[1] == 0 && alone.gpu_layers == alone.layers + 1, "one GPU has room for all of it");
        std::fs::remove_file(path).unwrap();
    }
}
