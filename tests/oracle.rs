//! Every family against reference logits, at the noise floor of f32.

mod common;

use common::{argmax, exact, nmse, references, rows};
use tandem::session::{Session, Want};

#[test]
fn logits_of_every_family_equal_the_reference_and_so_does_the_greedy_text() {
    let mut failed = Vec::new();
    for r in references() {
        let mut s = match Session::open(&r.gguf, &exact()) {
            Ok(s) => s,
            Err(e) => {
                say!("{:24} {e:#}", r.name);
                failed.push(r.name);
                continue;
            }
        };
        let all = s.feed(0, &r.prompt, Want::All).unwrap().into_logits();
        let n = s.n_vocab();
        let error = nmse(&r.logits, &rows(&all, n, &r.positions));
        let mut next = argmax(&all[(r.prompt.len() - 1) * n..]);
        let mut greedy = Vec::new();
        for _ in 0..r.greedy.len() {
            greedy.push(next);
            next = argmax(&s.feed(0, &[next], Want::Last).unwrap().into_logits());
        }
        let floor = &r.info["noise_floor"]["batch_vs_token_by_token"]["nmse"];
        let same = greedy == r.greedy;
        say!(
            "{:24} NMSE {error:.1e} (limit 1e-8, the reference's own noise {floor:.1e}), greedy {}",
            r.name,
            if same { "equal" } else { "DIFFERS" },
            floor = floor.as_f64().unwrap()
        );
        if error.is_nan() || error >= 1e-8 || !same {
            failed.push(r.name);
        }
    }
    assert!(failed.is_empty(), "off: {failed:?}");
}
