//! Probe.
mod recording;
use recording::*;
#[test]
fn probe() {
    for name in ["dscnn_digits_us-b16", "resnet8_cifar10-b16", "dscnn_kws-b16"] {
        let r = Recording::read(name);
        let model = r.open(&r.onnx().unwrap());
        let start = r.start(&model);
        let mut t = model.trainer(start.clone(), 1).unwrap();
        let ex = t.cache(&r.examples()).unwrap();
        let clips = batch(&ex);
        t.gradient(&clips).unwrap();
        for (s, rec) in t.gradients().sites.iter().zip(&r.meta.sites) {
            for (f, (n, e)) in s.delta.tensors().into_iter().zip(r.gradients(rec)) {
                println!("{name} {n} {:.1e}", relative_error(f, e));
                if relative_error(f, e) > 1e-4 {
                    let rows = if n.ends_with(".A") { 8 } else { s.weight_shape[0] };
                    let w = f.len() / rows;
                    for k in 0..rows { let d: f64 = (0..w).map(|j| (f[k*w+j] as f64 - e[k*w+j] as f64).powi(2)).sum::<f64>().sqrt(); print!("{k}:{d:.1e} "); }
                    println!();
                }
            }
        }
        for w in [Recorded::Sgd, Recorded::AdamW] {
            let (k, rate, e) = r.training(w);
            let mut t = model.trainer(start.clone(), 1).unwrap();
            let l = losses(&mut t, &clips, k, rate, 10);
            println!("{w:?} {:?}\n {:?}\n {:?}", l, e, l.iter().zip(e).map(|(a, b)| (a - b) / b).collect::<Vec<_>>());
        }
    }
}
