//! The report as a page of Markdown.

use super::{
    Report,
    report::{ClassReport, MetricReport, shown},
};

impl Report {
    /// A page for people: verdict, metrics, thresholds, comparison, classes, latency.
    pub fn markdown(&self) -> String {
        let verdict = if self.passed { "passed" } else { "failed" };
        let mut page = format!(
            "# Validation of {} version {}: {verdict}\n\n",
            plain(&self.model),
            self.version
        );
        for failure in &self.failures {
            page += &format!("- **{}**\n", plain(failure));
        }
        if !self.failures.is_empty() {
            page += "\n";
        }
        let unlabelled = match self.data.unlabelled {
            0 => String::new(),
            rows => format!(", {rows} of them without a label"),
        };
        page += &format!(
            "{} rows of `{}`{unlabelled}; labels from `{}`; {}.\n\n",
            self.data.rows,
            plain(&self.data.path),
            plain(&self.data.labels),
            self.task.name()
        );
        page += &self.metrics_table();
        if let Some(comparison) = &self.comparison {
            page += &format!(
                "\n{}{}.\n",
                comparison.sentence()[..1].to_uppercase(),
                &comparison.sentence()[1..]
            );
        }
        page += &self.class_tables();
        page += &format!(
            "\n## Latency\n\nRuns of up to {} rows: median {:.1} us, 99th percentile {:.1} us; a row {:.2} us and {:.2} us.\n",
            self.latency.rows_of_run,
            self.latency.run_p50_us,
            self.latency.run_p99_us,
            self.latency.row_p50_us,
            self.latency.row_p99_us
        );
        if !self.notes.is_empty() {
            page += "\n## Notes\n\n";
        }
        for note in &self.notes {
            page += &format!("- {}\n", plain(note));
        }
        page
    }

    fn metrics_table(&self) -> String {
        let other = self.comparison.as_ref();
        let mut table = String::from("| metric | value | threshold | |");
        let mut rule = String::from("\n| --- | ---: | --- | --- |");
        if let Some(other) = other {
            table += &format!(" version {} |", other.version);
            rule += " ---: |";
        }
        table += &rule;
        for own in &self.metrics {
            let threshold = self.thresholds.iter().find(|threshold| threshold.metric == own.metric);
            let limit = threshold.map(|threshold| {
                let sign = if own.metric.is_error() { "at most" } else { "at least" };
                format!("{sign} {}", threshold.limit)
            });
            let passed = threshold.map(|t| if t.passed { "reached" } else { "**not reached**" });
            table += &format!(
                "\n| {} | {} | {} | {} |",
                own.metric,
                value(own),
                limit.unwrap_or_default(),
                passed.unwrap_or_default()
            );
            if let Some(other) = other {
                let theirs = other.metrics.iter().find(|their| their.metric == own.metric);
                table += &format!(" {} |", theirs.map(value).unwrap_or_default());
            }
        }
        let about = match &self.positive {
            Some(class) => {
                format!("\nPrecision, recall and F1 are about the class `{}`.\n", plain(class))
            }
            None if self.classes.is_empty() => String::new(),
            None => "\nPrecision, recall and F1 are means over the classes.\n".to_owned(),
        };
        table + "\n" + &about
    }

    fn class_tables(&self) -> String {
        if self.classes.is_empty() {
            return String::new();
        }
        let mut text = String::from(
            "\n## Classes\n\n| class | rows | predicted | precision | recall | F1 |\n| --- | ---: | ---: | ---: | ---: | ---: |\n",
        );
        for class in &self.classes {
            let ClassReport { rows, predicted, precision, recall, f1, .. } = class;
            text += &format!(
                "| {} | {rows} | {predicted} | {} | {} | {} |\n",
                plain(&class.class),
                shown(*precision),
                shown(*recall),
                shown(*f1)
            );
        }
        let Some(confusion) = &self.confusion else { return text };
        text += "\nRows by actual class (down) and predicted class (across):\n\n| |";
        let names: Vec<_> = self.classes.iter().map(|class| plain(&class.class)).collect();
        text += &cells(names.iter());
        text += "\n| --- |";
        text += &" ---: |".repeat(names.len());
        for (name, counts) in names.iter().zip(confusion) {
            text += &format!("\n| {name} |");
            text += &cells(counts.iter());
        }
        text + "\n"
    }
}

/// The rest of a table's row.
fn cells<T: std::fmt::Display>(cells: impl Iterator<Item = T>) -> String {
    cells.fold(String::new(), |row, cell| row + &format!(" {cell} |"))
}

fn value(report: &MetricReport) -> String {
    report.value.map_or_else(|| "-".to_owned(), shown)
}

/// Text of strangers on one line, without anything that Markdown or HTML would act on.
fn plain(text: &str) -> String {
    let harmless = |c: char| match c {
        '|' | '<' | '>' | '`' | '*' | '_' | '[' | ']' | '\\' | '#' => format!("\\{c}"),
        c if c.is_control() => " ".to_owned(),
        c => c.to_string(),
    };
    text.chars().map(harmless).collect()
}
