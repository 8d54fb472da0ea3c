//! Accuracy, per class, confusion.

use serde::Serialize;

/// How well labels are found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Evaluation {
    /// Clips.
    pub samples: usize,
    /// Clips whose highest score is their label.
    pub correct: usize,
    /// correct / samples.
    pub accuracy: f64,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Counts of each class that has samples.
    pub per_class: Vec<ClassCount>,
    /// `confusion[label][predicted]`, counts over all classes.
    pub confusion: Vec<Vec<usize>>,
}

/// One class of an [`Evaluation`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClassCount {
    /// Its name.
    pub label: String,
    /// Its clips.
    pub samples: usize,
    /// Those found.
    pub correct: usize,
}

impl Evaluation {
    /// Counts `(label, predicted, loss)` of each clip; `labels` names the classes. A clip of a class that the model lacks
    /// has no loss.
    pub fn count(labels: &[String], results: &[(usize, usize, Option<f32>)]) -> Self {
        let mut confusion = vec![vec![0; labels.len()]; labels.len()];
        for (label, predicted, _) in results {
            confusion[*label][*predicted] += 1;
        }
        let per_class = labels
            .iter()
            .enumerate()
            .map(|(c, label)| ClassCount {
                label: label.clone(),
                samples: confusion[c].iter().sum(),
                correct: confusion[c][c],
            })
            .filter(|c| c.samples > 0)
            .collect();
        let correct = (0..labels.len()).map(|c| confusion[c][c]).sum();
        let samples = results.len();
        let mean = |sum: f64, of: usize| if of == 0 { 0.0 } else { sum / of as f64 };
        let losses: Vec<f64> = results.iter().filter_map(|r| r.2).map(f64::from).collect();
        let loss = mean(losses.iter().sum(), losses.len());
        Self { samples, correct, accuracy: mean(correct as f64, samples), loss, per_class, confusion }
    }
}

/// Index of the highest score; of one score alone, whether it is above zero.
pub(crate) fn predicted(logits: &[f32]) -> usize {
    if let [z] = logits {
        return usize::from(*z > 0.0);
    }
    let mut best = 0;
    for (k, z) in logits.iter().enumerate() {
        if *z > logits[best] {
            best = k;
        }
    }
    best
}
