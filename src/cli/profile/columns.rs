//! Which columns of the data become which features.

use std::{collections::BTreeMap, ops::RangeInclusive};

use anyhow::{Context as _, bail, ensure};

use super::super::commands::{ColumnRange, ProfileArguments};
use crate::{
    dataset::{Cells, Dataset, Format, Kind},
    drift::Column,
};

/// Rows that the kinds of a CSV file's columns are told from.
const ROWS_LOOKED_AT: usize = 10_000;

/// Columns that are read, and features that are made of them.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    /// The features.
    pub(super) columns: Vec<Column>,
    /// The source of each, in the same order.
    pub(super) sources: Vec<Source>,
    /// Notes on the choice, for people.
    pub(super) notes: Vec<String>,
}

/// Columns of the file that one column of the profile is read from.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) places: Vec<usize>,
    pub(super) form: Form,
}

/// Reading of cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As numbers.
    Numbers,
    /// As texts.
    Texts,
    /// As numbers that are categories, written as whole ones where they are.
    Categories,
}

impl Choice {
    /// Chooses from the columns of the files, which must be the same in all.
    /// More numbers than `singles_max` are one wide input.
    pub(super) fn of(
        files: &[Dataset],
        arguments: &ProfileArguments,
        singles_max: usize,
    ) -> anyhow::Result<Self> {
        let first = files.first().context("no data are named")?;
        for other in files {
            ensure!(
                other.columns() == first.columns(),
                "`{}` has other columns than `{}`; make a profile of files with the same columns",
                other.path().display(),
                first.path().display()
            );
        }
        let mut choosing = Choosing {
            data: first,
            arguments,
            singles_max,
            input: arguments.input.clone(),
            free: chosen(first, arguments)?,
            ready: BTreeMap::new(),
            notes: Vec::new(),
        };
        choosing.name_input();
        for range in &arguments.embedding {
            let places = choosing.take(range)?;
            let column = Column::Embedding { name: range.name.clone(), values: places.len() };
            choosing.add_together(column, places);
        }
        for range in &arguments.wide {
            let places = choosing.take(range)?;
            let column = Column::Wide { name: range.name.clone(), values: places.len() };
            choosing.add_together(column, places);
        }
        choosing.add_rest()?;
        let (columns, sources): (Vec<_>, Vec<_>) = choosing.ready.into_values().unzip();
        ensure!(!columns.is_empty(), "no column is left to make a profile of");
        Ok(Self { columns, sources, notes: choosing.notes })
    }

    /// The file's columns that must be read for some of the profile's.
    pub(super) fn places(&self, wanted: impl Fn(usize) -> bool) -> Vec<usize> {
        let sources = self.sources.iter().enumerate().filter(|(column, _)| wanted(*column));
        sources.flat_map(|(_, source)| source.places.iter().copied()).collect()
    }
}

/// The columns of the file that are neither label nor left out, in their order.
fn chosen(data: &Dataset, arguments: &ProfileArguments) -> anyhow::Result<Vec<usize>> {
    let mut out = Vec::new();
    if let Some(label) = &arguments.label {
        let last = data.columns().len() - 1;
        let is_last = label == "last" && data.column(label).is_err();
        out.push(if is_last { last } else { data.column(label)? });
    }
    for name in &arguments.exclude {
        out.push(data.column(name)?);
    }
    let only = arguments.columns.iter().map(|name| data.column(name));
    let only = only.collect::<Result<Vec<_>, _>>()?;
    let all = 0..data.columns().len();
    Ok(all
        .filter(|column| !out.contains(column) && (only.is_empty() || only.contains(column)))
        .collect())
}

struct Choosing<'a> {
    data: &'a Dataset,
    arguments: &'a ProfileArguments,
    /// Columns of numbers that are watched one by one; more are a wide input.
    singles_max: usize,
    /// The name of the input that columns without a name belong to.
    input: Option<String>,
    /// Columns that nothing is made of yet.
    free: Vec<usize>,
    /// By the first column that it is made of.
    ready: BTreeMap<usize, (Column, Source)>,
    notes: Vec<String>,
}

impl Choosing<'_> {
    /// Names the columns of an array after its file, unless told otherwise.
    fn name_input(&mut self) {
        let path = self.data.path();
        if Format::of(path) == Some(Format::Npy) && self.input.is_none() {
            self.input = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        }
    }

    /// Takes the columns of a range from those that are free.
    fn take(&mut self, range: &ColumnRange) -> anyhow::Result<Vec<usize>> {
        let within: RangeInclusive<usize> = match &range.columns {
            Some((from, to)) => self.data.column(from)?..=self.data.column(to)?,
            None => 0..=usize::MAX,
        };
        let (taken, free) = self.free.iter().partition(|column| within.contains(column));
        self.free = free;
        let taken: Vec<usize> = taken;
        ensure!(
            !taken.is_empty(),
            "`{range}` names no columns: the second must not stand before the first in the file, and no other option \
             may have taken or left them out"
        );
        Ok(taken)
    }

    /// Makes one column of several.
    fn add_together(&mut self, column: Column, places: Vec<usize>) {
        let Some(first) = places.first().copied() else { return };
        self.ready.insert(first, (column, Source { places, form: Form::Numbers }));
    }

    /// Makes features of the columns that are free: each its own, or all numbers together if they are too many.
    fn add_rest(&mut self) -> anyhow::Result<()> {
        let free = std::mem::take(&mut self.free);
        if free.is_empty() {
            return Ok(());
        }
        let mut data = self.data.again()?;
        data.select(free.iter().copied())?;
        let beginning = data.next(ROWS_LOOKED_AT)?;
        let categorical = self.arguments.categorical.iter().map(|name| self.data.column(name));
        let categorical = categorical.collect::<Result<Vec<_>, _>>()?;
        if let Some(column) = categorical.iter().find(|column| !free.contains(column)) {
            bail!(
                "column `{}` cannot be categories: it is left out, or part of an input",
                self.data.columns()[*column].name
            );
        }
        let mut singles = Vec::new();
        for (position, place) in free.iter().copied().enumerate() {
            let cells = beginning.as_ref().map(|batch| &batch.cells[position]);
            let is_category = categorical.contains(&place);
            match self.form(place, cells, is_category)? {
                Form::Numbers => singles.push(place),
                form => {
                    let name = self.name(place, free.len());
                    let column = Column::Texts {
                        name,
                        is_category: is_category || form == Form::Categories,
                    };
                    self.ready.insert(place, (column, Source { places: vec![place], form }));
                }
            }
        }
        if singles.len() > self.singles_max {
            let input = self.input.clone().unwrap_or_else(|| "input".to_owned());
            self.notes.push(format!(
                "{} numbers a row are watched as one wide input `{input}` (--input names it): by mean, spread, extremes and \
                 share of zeros",
                singles.len()
            ));
            let column = Column::Wide { name: input, values: singles.len() };
            self.add_together(column, singles);
            return Ok(());
        }
        for place in singles {
            let column = Column::Number { name: self.name(place, free.len()) };
            self.ready.insert(place, (column, Source { places: vec![place], form: Form::Numbers }));
        }
        Ok(())
    }

    /// The feature of a column: its name, or its place in the input that all columns are.
    fn name(&self, place: usize, columns: usize) -> String {
        match &self.input {
            Some(input) if columns == 1 => input.clone(),
            Some(input) => format!("{input}[{place}]"),
            None => self.data.columns()[place].name.clone(),
        }
    }

    /// The form of a column, which a CSV file does not say, so that its first rows must.
    fn form(&self, place: usize, cells: Option<&Cells>, is_category: bool) -> anyhow::Result<Form> {
        let numbers = if is_category { Form::Categories } else { Form::Numbers };
        Ok(match self.data.columns()[place].kind {
            Kind::Integer | Kind::Float => numbers,
            Kind::Boolean => Form::Categories,
            Kind::Text | Kind::List | Kind::Other => Form::Texts,
            Kind::Written => match cells.map(Spelling::of) {
                None => numbers,
                Some(Spelling { texts: 0, numbers: 0, truths: 1.., .. }) => Form::Categories,
                Some(spelling) if spelling.texts == 0 => {
                    if is_category && spelling.has_zeros {
                        Form::Texts
                    } else {
                        numbers
                    }
                }
                Some(spelling) if !is_category && spelling.numbers > spelling.texts => {
                    let row = spelling.first_text;
                    let wanted = format!(
                        "most cells of the column are numbers: put one there or nothing, or take the column as texts with \
                         --categorical '{0}', or leave it out with --exclude '{0}'",
                        self.data.columns()[place].name
                    );
                    let wrong = cells.context("there are cells")?.wrong(row, &wanted);
                    bail!(self.data.wrong_cell(row as u64 + 1, place, wrong));
                }
                Some(_) => Form::Texts,
            },
        })
    }
}

/// Spelling of a column's cells.
#[derive(Debug, Default)]
struct Spelling {
    numbers: usize,
    truths: usize,
    texts: usize,
    /// The first row of a text.
    first_text: usize,
    /// True if a number begins with a zero that it does not need: a code, as of a town.
    has_zeros: bool,
}

impl Spelling {
    fn of(cells: &Cells) -> Self {
        let mut spelling = Self::default();
        for row in (0..cells.len()).filter(|row| !cells.is_missing(*row)) {
            let text = cells.text(row).unwrap_or_default();
            let text = text.trim_ascii();
            if text.eq_ignore_ascii_case(b"true") || text.eq_ignore_ascii_case(b"false") {
                spelling.truths += 1;
            } else if cells.float(row).is_ok() {
                spelling.numbers += 1;
                spelling.has_zeros |= matches!(text, [b'0', b'0'..=b'9', ..]);
            } else {
                spelling.first_text = if spelling.texts == 0 { row } else { spelling.first_text };
                spelling.texts += 1;
            }
        }
        spelling
    }
}
