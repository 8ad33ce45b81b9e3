//! Classes by number: labels of the data and answers of a version, which may spell them differently.
//!
//! A version says a class as a number, as text, or as the column with the largest score; data say it as a number or
//! by name. Names of columns come with the model (`label_filename` in `config.pbtxt`).

use std::collections::HashMap;

use super::survey::in_order;

/// Ways in which a version names a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// By a number of its own, which names the class.
    Numbers,
    /// By its name.
    Texts,
    /// By the column of its score.
    Columns,
}

/// The classes met so far.
#[derive(Debug)]
pub(super) struct Classes {
    naming: Naming,
    /// Names of the columns of scores; empty where not known.
    names: Vec<String>,
    keys: Vec<String>,
    index: HashMap<String, u32>,
    /// The class of each column of scores; `None` where that is not known.
    columns: Option<Vec<u32>>,
    /// The most that there may be.
    most: usize,
}

/// Error of more classes than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMany;

impl Classes {
    /// The classes of the labels, and those of so many columns of scores (0 for a version without scores).
    pub(super) fn new(
        naming: Naming,
        names: &[String],
        columns: usize,
        labels: &[String],
        classes_max: usize,
    ) -> Result<Self, TooMany> {
        let needed = if columns == 1 { 2 } else { columns };
        let names = if columns == 0 || names.len() == needed { names.to_vec() } else { Vec::new() };
        let mut classes = Self {
            naming,
            names,
            keys: Vec::new(),
            index: HashMap::new(),
            columns: None,
            most: classes_max,
        };
        if naming == Naming::Columns {
            let keys = classes.keys_of_columns(columns, labels);
            let columns = keys.iter().map(|key| classes.intern(key)).collect::<Result<_, _>>()?;
            classes.columns = Some(columns);
            return Ok(classes);
        }
        let mut known: Vec<String> =
            labels.iter().filter_map(|label| classes.translated(label)).collect();
        in_order(&mut known);
        known.dedup();
        let keys = classes.keys_of_labels(columns, &known);
        if let Some(keys) = keys {
            let columns = keys.iter().map(|key| classes.intern(key)).collect::<Result<_, _>>()?;
            classes.columns = Some(columns);
        }
        for key in &known {
            classes.intern(key)?;
        }
        Ok(classes)
    }

    /// A class for each column where columns are all that a version has; two for one column.
    fn keys_of_columns(&self, columns: usize, labels: &[String]) -> Vec<String> {
        if !self.names.is_empty() {
            return self.names.clone();
        }
        let is_number =
            |label: &String| label.parse::<i64>().is_ok() || label == "true" || label == "false";
        if columns == 1 && labels.len() == 2 && !labels.iter().all(is_number) {
            return labels.to_vec();
        }
        (0..columns.max(2)).map(|column| column.to_string()).collect()
    }

    /// The class of each column beside an output with the class itself.
    fn keys_of_labels(&self, columns: usize, known: &[String]) -> Option<Vec<String>> {
        if columns < 2 {
            return None;
        }
        let numbers = || (0..columns).map(|column| column.to_string()).collect();
        match self.naming {
            Naming::Texts if !self.names.is_empty() => Some(self.names.clone()),
            Naming::Numbers if known.iter().all(|key| is_below(key, columns)) => Some(numbers()),
            _ if known.len() == columns => Some(known.to_vec()),
            _ => None,
        }
    }

    /// A label of the data as the version spells it; `None` if it cannot be one of its classes.
    fn translated(&self, label: &str) -> Option<String> {
        let truth = || match label {
            "true" => Some("1".to_owned()),
            "false" => Some("0".to_owned()),
            _ => None,
        };
        let named = || self.names.iter().position(|name| name == label);
        match self.naming {
            Naming::Numbers if label.parse::<i64>().is_ok() => Some(label.to_owned()),
            Naming::Numbers => named().map(|column| column.to_string()).or_else(truth),
            Naming::Texts => {
                if named().is_some() {
                    return Some(label.to_owned());
                }
                let column = label.parse::<usize>().ok();
                let name = column.and_then(|column| self.names.get(column));
                Some(name.map_or_else(|| label.to_owned(), Clone::clone))
            }
            Naming::Columns => {
                let of_column = |column: usize| self.keys.get(column).cloned();
                if self.index.contains_key(label) {
                    return Some(label.to_owned());
                }
                let column = label.parse().ok().or_else(|| truth()?.parse().ok());
                column.and_then(of_column)
            }
        }
    }

    /// The class of a label of the data; `Ok(None)` if the version cannot have it.
    pub(super) fn of_label(&mut self, label: &str) -> Result<Option<u32>, TooMany> {
        if let Some(class) = self.index.get(label)
            && self.naming != Naming::Numbers
        {
            return Ok(Some(*class));
        }
        self.translated(label).map(|key| self.intern(&key)).transpose()
    }

    /// The class that a version names.
    pub(super) fn of_answer(&mut self, answer: &str) -> Result<u32, TooMany> {
        match self.index.get(answer) {
            Some(class) => Ok(*class),
            None => self.intern(answer),
        }
    }

    /// The class with the largest score, the first of equal ones; `None` if a score is not a number, or if it is not
    /// known which column is which class.
    pub(super) fn best(&self, scores: &[f64]) -> Option<u32> {
        let columns = self.columns.as_deref()?;
        if scores.iter().any(|score| score.is_nan()) {
            return None;
        }
        if let [score] = scores {
            return columns.get(usize::from(*score >= 0.5)).copied();
        }
        let mut best = 0;
        for (column, score) in scores.iter().enumerate() {
            if *score > scores[best] {
                best = column;
            }
        }
        columns.get(best).copied()
    }

    /// The class of each column of scores.
    pub(super) fn columns(&self) -> Option<&[u32]> {
        self.columns.as_deref()
    }

    /// The number of classes met.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns the name that people use for a class.
    pub(super) fn name(&self, class: u32) -> String {
        let key = &self.keys[class as usize];
        let column = match self.naming {
            Naming::Numbers => key.parse::<usize>().ok(),
            Naming::Texts | Naming::Columns => None,
        };
        column.and_then(|column| self.names.get(column)).unwrap_or(key).clone()
    }

    /// All classes in order.
    pub(super) fn in_order(&self) -> Vec<u32> {
        let mut keys = self.keys.clone();
        if self.naming == Naming::Columns {
            return (0..self.keys.len()).filter_map(|class| u32::try_from(class).ok()).collect();
        }
        in_order(&mut keys);
        keys.iter().map(|key| self.index[key]).collect()
    }

    /// The classes for a message.
    pub(super) fn listed(&self) -> String {
        const LISTED_MAX: usize = 12;
        let mut names: Vec<_> = self
            .in_order()
            .into_iter()
            .take(LISTED_MAX)
            .map(|class| format!("`{}`", self.name(class)))
            .collect();
        if self.len() > LISTED_MAX {
            names.push(format!("and {} more", self.len() - LISTED_MAX));
        }
        names.join(", ")
    }

    fn intern(&mut self, key: &str) -> Result<u32, TooMany> {
        if let Some(class) = self.index.get(key) {
            return Ok(*class);
        }
        if self.keys.len() >= self.most {
            return Err(TooMany);
        }
        let class = u32::try_from(self.keys.len()).map_err(|_| TooMany)?;
        self.keys.push(key.to_owned());
        self.index.insert(key.to_owned(), class);
        Ok(class)
    }
}

fn is_below(key: &str, columns: usize) -> bool {
    key.parse::<usize>().is_ok_and(|number| number < columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    /// The class of each label, and that of each column.
    fn check(
        naming: Naming,
        names: &[&str],
        columns: usize,
        labels: &[&str],
        of_labels: &[Option<&str>],
        of_columns: Option<&[&str]>,
    ) {
        let mut classes = Classes::new(naming, &texts(names), columns, &texts(labels), 10).unwrap();
        let found: Vec<_> = labels
            .iter()
            .map(|label| {
                classes.of_label(label).unwrap().map(|class| classes.keys[class as usize].clone())
            })
            .collect();
        let expected: Vec<_> = of_labels.iter().map(|key| key.map(str::to_owned)).collect();
        assert_eq!(found, expected, "{naming:?} {names:?} {labels:?}");
        let keys = classes.columns().map(|columns| {
            columns.iter().map(|class| classes.keys[*class as usize].clone()).collect::<Vec<_>>()
        });
        assert_eq!(keys, of_columns.map(texts), "{naming:?} {names:?} {labels:?}");
    }

    #[test]
    fn labels_are_matched_to_what_the_version_says() {
        use Naming::{Columns, Numbers, Texts};
        let (zero, one) = (Some("0"), Some("1"));
        let iris = ["setosa", "virginica"];
        check(Numbers, &iris, 2, &["virginica", "setosa"], &[one, zero], Some(&["0", "1"]));
        check(Numbers, &iris, 2, &["1", "0"], &[one, zero], Some(&["0", "1"]));
        check(Numbers, &[], 2, &["3", "8"], &[Some("3"), Some("8")], Some(&["3", "8"]));
        check(Numbers, &[], 3, &["3", "8"], &[Some("3"), Some("8")], None);
        check(Numbers, &[], 0, &["true", "x"], &[one, None], None);
        check(Texts, &[], 2, &["yes", "no"], &[Some("yes"), Some("no")], Some(&["no", "yes"]));
        check(
            Texts,
            &["no", "yes"],
            2,
            &["1", "no"],
            &[Some("yes"), Some("no")],
            Some(&["no", "yes"]),
        );
        check(Columns, &["5", "7"], 2, &["7", "0"], &[Some("7"), Some("5")], Some(&["5", "7"]));
        check(Columns, &[], 3, &["2", "3", "a"], &[Some("2"), None, None], Some(&["0", "1", "2"]));
        check(
            Columns,
            &[],
            1,
            &["bad", "good"],
            &[Some("bad"), Some("good")],
            Some(&["bad", "good"]),
        );
        check(Columns, &[], 1, &["false", "true"], &[zero, one], Some(&["0", "1"]));
    }

    #[test]
    fn classes_are_bounded() {
        let mut classes = Classes::new(Naming::Texts, &[], 0, &[], 10).unwrap();
        let all = (0..=10).map(|class| classes.of_answer(&class.to_string()));
        assert_eq!(all.filter(Result::is_err).count(), 1);
    }
}
