//! The table, and the same as JSON.

use serde_json::{Value, json};

/// One figure against its measure.
#[derive(Clone, Debug)]
pub struct Row {
    what: String,
    ours: String,
    measure: String,
    figure: String,
    aim: String,
    kept: Option<bool>,
}

/// All figures.
#[derive(Debug)]
pub struct Report {
    /// What is measured, and what it is measured by.
    sides: [&'static str; 2],
    rows: Vec<Row>,
    details: serde_json::Map<String, Value>,
}

impl Report {
    /// No figure yet.
    pub fn of(sides: [&'static str; 2]) -> Self {
        Self { sides, rows: Vec::new(), details: serde_json::Map::new() }
    }

    /// A figure that has a measure and an aim: what, ours, the measure's, their ratio, the aim, whether it is kept.
    pub fn row(&mut self, what: &str, ours: String, measure: String, figure: String, aim: &str, kept: Option<bool>) {
        eprintln!("bench: {what}: {ours} against {measure}: {figure} (aim {aim})");
        let aim = aim.to_owned();
        self.rows.push(Row { what: what.to_owned(), ours, measure, figure, aim, kept });
    }

    /// A figure that explains others.
    pub fn detail(&mut self, name: &str, value: Value) {
        eprintln!("bench:   {name} = {value}");
        self.details.insert(name.to_owned(), value);
    }

    /// As a table, for people.
    pub fn text(&self) -> String {
        let head = ["", self.sides[0], self.sides[1], "figure", "aim", ""].map(str::to_owned);
        let word = |kept: Option<bool>| kept.map_or("", |kept| if kept { "kept" } else { "MISSED" }).to_owned();
        let cells = |row: &Row| {
            let Row { what, ours, measure, figure, aim, kept } = row.clone();
            [what, ours, measure, figure, aim, word(kept)]
        };
        let lines: Vec<_> = std::iter::once(head).chain(self.rows.iter().map(cells)).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
        let widths: Vec<_> = (0..6).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let cells: Vec<_> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            text += cells.join("  ").trim_end();
            text.push('\n');
        }
        text
    }

    /// For machines.
    pub fn json(&self) -> Value {
        let row = |Row { what, ours, measure, figure, aim, kept }: &Row| json!({"what": what, self.sides[0]: ours, self.sides[1]: measure, "figure": figure, "aim": aim, "kept": kept});
        json!({"figures": self.rows.iter().map(row).collect::<Vec<_>>(), "details": self.details})
    }
}

/// The value below which this share of them lies.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a small index"
    )]
    let index = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}
