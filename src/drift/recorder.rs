//! Counts on the path: one cell per value, in the worker's own shard.
//!
//! A recorder stands for one version. Always true:
//! - A value costs a few compares and one plain count; no lock is waited for, and nothing is allocated after a worker's
//!   first request.
//! - Work per request is bounded: of a request with more values than [`Settings::values_max`], evenly spaced rows are
//!   counted, from a random first one on; rows seen and rows counted are both known.
//! - Work per second is bounded: of more values than [`Settings::rate_max`], those of random rows are counted, whatever
//!   they are, so that what is counted is distributed as what ran.
//! - A shard has one writer; whoever merges reads it while it is written, and finds what it missed the next time.
//!
//! [`Settings::values_max`]: super::Settings
//! [`Settings::rate_max`]: super::Settings

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, OnceLock, TryLockError,
        atomic::{
            AtomicU32, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
            fence,
        },
    },
};

use crate::{model::Input, monitor::WorkerId, tensor::Tensor};

use super::{
    activity::Place,
    binner::{Column, Keys, Real},
    layout::{Layout, Reading},
    plan::{Counting, Plan},
    reader::{Items, Visit, visit},
    summary::Summary,
    tap::Tap,
    waiting::Waiting,
    words,
};

/// Counts one version's live values.
#[derive(Debug)]
pub struct Recorder {
    /// One after the other: found without a count of those who hold them.
    stages: [OnceLock<Arc<Stage>>; STAGES],
    present: AtomicUsize,
    place: Place,
    values_max: usize,
}

/// Stage of counting; another one follows when a reference was learned.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) layout: Layout,
    pub(super) plan: Plan,
    shards: Box<[Padded<OnceLock<Shard>>]>,
    /// Rows of which one is counted, on average; 1 for every row.
    one_in: AtomicU32,
    /// Mean number of rows between two that are sampled; 0 for every row.
    gap: AtomicU32,
    /// Rows that a sample may hold before it is fetched.
    tap_rows: usize,
}

/// One worker's counts.
#[derive(Debug)]
pub(super) struct Shard {
    /// Rows that ran.
    seen: AtomicU64,
    /// Rows among them whose inputs were counted.
    counted: AtomicU64,
    /// Work for all values that were counted.
    work: AtomicU64,
    cells: Box<[AtomicU32]>,
    random: AtomicU64,
    inputs: Side,
    outputs: Side,
}

/// The sample of inputs or of outputs.
#[derive(Debug)]
struct Side {
    /// By tensor: rows that are counted later.
    waiting: Box<[Later]>,
    /// Requests of one row to pass over before the next one that is counted.
    pause: AtomicU32,
    /// Rows to pass over before the next one that is sampled.
    skip: AtomicU32,
    tap: Mutex<Tap>,
}

/// Rows of one tensor that are counted later, in the precision that it has.
#[derive(Debug)]
struct Later {
    single: Waiting<f32>,
    double: Waiting<f64>,
}

/// Most stages of a recorder: references of inputs are learned once, and those of outputs.
const STAGES: usize = 3;

/// Keeps shards of different workers off each other's cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

/// Elements of a row that its measures are worked out from; of a longer row, evenly spaced ones.
const MEASURED_MAX: usize = 1024;

/// Neighbouring rows of a request.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// All rows of the request.
    pub(super) rows: usize,
    /// Those that are meant.
    pub(super) range: Range<usize>,
}

/// Rows that are counted of one request.
#[derive(Debug, Clone, Copy)]
struct Picked {
    start: usize,
    step: usize,
    count: usize,
}

impl Picked {
    fn rows(self) -> impl Iterator<Item = usize> {
        (0..self.count).map(move |index| self.start + index * self.step)
    }
}

impl Recorder {
    /// A recorder for a layout.
    pub(super) fn new(layout: Layout, place: Place, values_max: usize) -> Self {
        let first = OnceLock::from(Arc::new(Stage::new(layout, place.workers())));
        let stages = [first, OnceLock::new(), OnceLock::new()];
        Self { stages, present: AtomicUsize::new(0), place, values_max }
    }

    /// Counts the inputs of a request that is about to run: those that a request must bring come first, in the
    /// signature's order. `rows` is at least 1. Copies of requests that a shadow runs are not counted: no worker runs
    /// them.
    #[inline]
    pub fn inputs(&self, worker: WorkerId, inputs: &[Input], rows: usize) {
        let stage = self.present();
        if rows == 1
            && let Some(shard) = stage.known_shard(worker)
            && stage.passes(&shard.inputs)
        {
            add(&shard.seen, 1);
            return self.place.counted(worker.0);
        }
        self.inputs_of(worker, inputs, &Block { rows, range: 0..rows });
    }

    /// The same for some rows of the request.
    pub(super) fn inputs_of(&self, worker: WorkerId, inputs: &[Input], block: &Block) {
        let stage = self.present();
        let Some(shard) = stage.shard(worker) else { return };
        add(&shard.seen, block.range.len() as u64);
        self.place.counted(worker.0);
        let tensors = |index: usize| inputs.get(index).map(|input| &input.tensor);
        let plan = &stage.plan;
        if let Some(picked) = self.pick(stage, (shard, &shard.inputs), plan.work[0], block) {
            add(&shard.counted, picked.count as u64);
            let side = plan.inputs.iter().zip(&shard.inputs.waiting).zip(inputs);
            for ((counting, waiting), input) in side {
                shard.count((counting, waiting), &input.tensor, block.rows, picked);
            }
        }
        shard.sample(&shard.inputs, stage, &stage.layout.inputs, tensors, block);
    }

    /// Counts outputs, as they are given to the client; `wanted` has the index of each in the signature.
    #[inline]
    pub fn outputs(&self, worker: WorkerId, outputs: &[Tensor], wanted: &[usize], rows: usize) {
        let stage = self.present();
        if rows == 1
            && let Some(shard) = stage.known_shard(worker)
            && stage.passes(&shard.outputs)
        {
            return;
        }
        self.outputs_of(worker, (outputs, wanted), &Block { rows, range: 0..rows });
    }

    /// The same for some rows of the request.
    pub(super) fn outputs_of(
        &self,
        worker: WorkerId,
        (outputs, wanted): (&[Tensor], &[usize]),
        block: &Block,
    ) {
        let stage = self.present();
        let Some(shard) = stage.shard(worker) else { return };
        let plan = &stage.plan;
        if let Some(picked) = self.pick(stage, (shard, &shard.outputs), plan.work[1], block) {
            for (tensor, index) in outputs.iter().zip(wanted) {
                let place = (&plan.outputs[*index], &shard.outputs.waiting[*index]);
                shard.count(place, tensor, block.rows, picked);
            }
        }
        let tensors = |index: usize| {
            let place = wanted.iter().position(|wanted| *wanted == index)?;
            outputs.get(place)
        };
        shard.sample(&shard.outputs, stage, &stage.layout.outputs, tensors, block);
    }

    /// The rows that are counted; `None` if nothing is.
    fn pick(
        &self,
        stage: &Stage,
        (shard, side): (&Shard, &Side),
        work: usize,
        block: &Block,
    ) -> Option<Picked> {
        let one_in = stage.one_in.load(Relaxed);
        let (rows, len, start) = (block.rows, block.range.len(), block.range.start);
        if work == 0 || len == 0 {
            return None;
        }
        let picked = if rows == 1 {
            if one_in > 1 && !side.is_turn(|| shard.random(2 * one_in as usize - 1)) {
                return None;
            }
            Picked { start, step: 1, count: 1 }
        } else if one_in == 1 && work.saturating_mul(rows) <= self.values_max {
            Picked { start, step: 1, count: len }
        } else {
            self.pick_some(one_in as usize, shard, work, block)?
        };
        add(&shard.work, (picked.count * work) as u64);
        Some(picked)
    }

    /// The same where some rows of several may be passed over.
    fn pick_some(
        &self,
        one_in: usize,
        shard: &Shard,
        work: usize,
        block: &Block,
    ) -> Option<Picked> {
        let (rows, len, first) = (block.rows, block.range.len(), block.range.start);
        // A part of a request has its share of the rows, by chance where that is no whole number.
        let part = (self.values_max / work).clamp(1, rows) * len;
        let whole = rows.saturating_mul(one_in);
        let rest = part % whole;
        let count = part / whole + usize::from(rest > 0 && shard.random(whole) < rest);
        if count == 0 {
            return None;
        }
        let step = len / count;
        let start = first + shard.random(len - (count - 1) * step);
        Some(Picked { start, step, count })
    }

    /// The present stage.
    #[inline]
    fn present(&self) -> &Arc<Stage> {
        let stage = self.stages[self.present.load(Acquire)].get();
        stage.expect("a stage is present only after it was put there")
    }

    /// Returns the present stage.
    pub(super) fn stage(&self) -> Arc<Stage> {
        Arc::clone(self.present())
    }

    /// Names of the columns of each input that a request must bring; `None` where they are not features one by one.
    pub fn columns(&self) -> Vec<Option<Vec<String>>> {
        let stage = self.present();
        let named = stage.layout.inputs.iter().zip(stage.layout.names());
        named
            .map(|(reading, names)| {
                let is_each = matches!(reading, Reading::Numbers { .. } | Reading::Texts { .. });
                is_each.then(|| names.into_iter().map(str::to_owned).collect())
            })
            .collect()
    }

    /// Counts by another layout from now on; returns what was counted before, which may still be written for a moment.
    ///
    /// # Panics
    ///
    /// Panics if it has had as many layouts as references can be learned for.
    pub(super) fn turn_to(&self, layout: Layout) -> Arc<Stage> {
        let before = self.stage();
        let next = self.present.load(Relaxed) + 1;
        let stage = Stage::new(layout, self.place.workers());
        // As many rows will come as did.
        stage.count_one_in(before.one_in());
        let is_new = self.stages[next].set(Arc::new(stage)).is_ok();
        assert!(is_new, "one thread turns to the next layout");
        self.present.store(next, Release);
        before
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.place.end();
    }
}

/// Bytes of the values that one worker's sample holds before it is fetched, while references are learned.
const TAP_BYTES: usize = 256 << 10;

/// Rows of a sample when none is.
const TAP_ROWS: usize = 64;

impl Stage {
    fn new(layout: Layout, workers: usize) -> Self {
        let plan = Plan::new(&layout);
        let width = layout.features.len().max(1);
        let is_learning = layout.features.iter().any(|known| known.reference.is_none());
        Self {
            tap_rows: if is_learning {
                (TAP_BYTES / (8 * width)).clamp(TAP_ROWS, 2048)
            } else {
                TAP_ROWS
            },
            plan,
            layout,
            shards: (0..workers).map(|_| Padded::default()).collect(),
            one_in: AtomicU32::new(1),
            gap: AtomicU32::new(0),
        }
    }

    /// The shard of a worker that has counted before.
    #[inline]
    fn known_shard(&self, worker: WorkerId) -> Option<&Shard> {
        self.shards.get(worker.0)?.0.get()
    }

    /// Passes over a request of one row, where it is neither counted nor sampled; else changes nothing.
    #[inline]
    fn passes(&self, side: &Side) -> bool {
        let (pause, skip) = (side.pause.load(Relaxed), side.skip.load(Relaxed));
        let passes = pause > 0 && skip > 0 && self.one_in.load(Relaxed) > 1;
        if passes {
            side.pause.store(pause - 1, Relaxed);
            side.skip.store(skip - 1, Relaxed);
        }
        passes
    }

    fn shard(&self, worker: WorkerId) -> Option<&Shard> {
        let shard = self.shards.get(worker.0)?;
        Some(shard.0.get_or_init(|| Shard {
            seen: AtomicU64::new(0),
            counted: AtomicU64::new(0),
            work: AtomicU64::new(0),
            cells: (0..self.plan.len).map(|_| AtomicU32::new(0)).collect(),
            random: AtomicU64::new(0x9e37_79b9_7f4a_7c15 ^ worker.0 as u64),
            inputs: Side::new(&self.plan.inputs, self.tap_rows),
            outputs: Side::new(&self.plan.outputs, self.tap_rows),
        }))
    }

    /// Shards of the workers that have counted something.
    pub(super) fn shards(&self) -> impl Iterator<Item = (usize, &Shard)> {
        let shards = self.shards.iter().enumerate();
        shards.filter_map(|(worker, shard)| Some((worker, shard.0.get()?)))
    }

    /// Has one of so many rows counted from now on, at random; 1 for every row.
    pub(super) fn count_one_in(&self, rows: u32) {
        self.one_in.store(rows.max(1), Relaxed);
    }

    /// Rows of which one is counted.
    pub(super) fn one_in(&self) -> u32 {
        self.one_in.load(Relaxed)
    }

    /// Has rows sampled so often from now on: one of `gap + 1`.
    pub(super) fn sample_every(&self, gap: u32) {
        self.gap.store(gap, Relaxed);
    }

    /// Rows that a worker's sample may hold before it is fetched.
    pub(super) fn tap_rows(&self) -> usize {
        self.tap_rows
    }
}

impl Side {
    fn new(plan: &[Counting], rows: usize) -> Self {
        let waiting = plan.iter().map(Later::of).collect();
        let [pause, skip] = [(); 2].map(|()| AtomicU32::new(0));
        Self { waiting, pause, skip, tap: Mutex::new(Tap::new(rows)) }
    }

    /// True if a request of one row is counted; then `next` says how many are passed over after it.
    fn is_turn(&self, next: impl Fn() -> usize) -> bool {
        let pause = self.pause.load(Relaxed);
        let after = pause.checked_sub(1).or_else(|| u32::try_from(next()).ok());
        self.pause.store(after.unwrap_or(u32::MAX), Relaxed);
        pause == 0
    }
}

impl Later {
    fn of(counting: &Counting) -> Self {
        let width = if let Counting::Numbers { single, .. } = counting { single.len() } else { 0 };
        Self { single: Waiting::new(width), double: Waiting::new(width) }
    }

    /// Hands out the cells of what waits.
    fn cells(&self, counting: &Counting, mut each: impl FnMut(u32)) {
        if let Counting::Numbers { single, double } = counting {
            self.single.cells(single, &mut each);
            self.double.cells(double, &mut each);
        }
    }
}

#[inline]
fn add(count: &AtomicU64, n: u64) {
    count.store(count.load(Relaxed).wrapping_add(n), Relaxed);
}

#[inline]
fn bump(cells: &[AtomicU32], cell: u32) {
    let count = &cells[cell as usize];
    count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
}

impl Shard {
    /// Rows that ran, rows among them whose inputs were counted, and work for all values that were.
    pub(super) fn rows(&self) -> [u64; 3] {
        [self.seen.load(Acquire), self.counted.load(Relaxed), self.work.load(Relaxed)]
    }

    /// Counts by cell, with those of rows that wait; they wrap.
    ///
    /// While rows are counted, some of them are missing until the next look.
    pub(super) fn counts(&self, plan: &Plan) -> Vec<u32> {
        let mut counts: Vec<_> = self.cells.iter().map(|cell| cell.load(Relaxed)).collect();
        // What was counted by now is not found again among what waits.
        fence(Acquire);
        let sides = [(&plan.inputs, &self.inputs), (&plan.outputs, &self.outputs)];
        for (plan, side) in sides {
            for (counting, waiting) in plan.iter().zip(&side.waiting) {
                waiting.cells(counting, |cell| {
                    let count = &mut counts[cell as usize];
                    *count = count.wrapping_add(1);
                });
            }
        }
        counts
    }

    /// Takes the sampled rows of inputs and of outputs, and leaves room of the same size for more.
    pub(super) fn take(&self, spare: &mut [Tap; 2]) {
        for (side, spare) in [&self.inputs, &self.outputs].into_iter().zip(spare) {
            let mut tap = side.tap.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            spare.clear(tap.rows_max());
            std::mem::swap(&mut *tap, spare);
        }
    }

    /// A number below `bound`, from the shard's own sequence (xorshift, Marsaglia 2003).
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the high half of a product is below the bound"
    )]
    fn random(&self, bound: usize) -> usize {
        let mut state = self.random.load(Relaxed);
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.random.store(state, Relaxed);
        ((u128::from(state) * bound as u128) >> 64) as usize
    }

    fn count(
        &self,
        (counting, waiting): (&Counting, &Later),
        tensor: &Tensor,
        rows: usize,
        picked: Picked,
    ) {
        let cells = &*self.cells;
        match counting {
            Counting::Skipped => {}
            Counting::Numbers { single, double } => {
                visit(tensor, &mut Numbers { cells, single, double, waiting, rows, picked });
            }
            Counting::Texts(columns) => {
                let Some(strings) = tensor.strings() else { return };
                if strings.len() != rows * columns.len() {
                    return;
                }
                for row in picked.rows() {
                    for (index, column) in columns.iter().enumerate() {
                        bump(
                            cells,
                            column
                                .cell(strings.get(row * columns.len() + index).unwrap_or_default()),
                        );
                    }
                }
            }
            Counting::Words { columns, words } => {
                let Some(strings) = tensor.strings() else { return };
                if strings.len() != rows {
                    return;
                }
                for row in picked.rows() {
                    let measures = measure_words(strings.get(row).unwrap_or_default(), words);
                    for (column, value) in columns.iter().zip(measures) {
                        bump(cells, column.cell(value));
                    }
                }
            }
            Counting::Summary(columns) => {
                visit(tensor, &mut Summaries { cells, columns, rows, picked });
            }
            Counting::Clusters { centres, width, first, norm } => {
                let places = (&**centres, *width, *first, &**norm);
                visit(tensor, &mut Nearest { cells, places, rows, picked });
            }
        }
    }

    /// Puts rows into the sample, one in `gap + 1`.
    fn sample<'t>(
        &self,
        side: &Side,
        stage: &Stage,
        readings: &[Reading],
        tensors: impl Fn(usize) -> Option<&'t Tensor>,
        block: &Block,
    ) {
        let rows = u32::try_from(block.range.len()).unwrap_or(u32::MAX);
        let skip = side.skip.load(Relaxed);
        if skip >= rows {
            side.skip.store(skip - rows, Relaxed);
            return;
        }
        let gap = stage.gap.load(Relaxed);
        let mut tap = match side.tap.try_lock() {
            Ok(tap) => tap,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // It is being fetched.
            Err(TryLockError::WouldBlock) => return,
        };
        let mut row = skip;
        while row < rows {
            if !tap.has_room() {
                row = rows;
                break;
            }
            for (index, reading) in readings.iter().enumerate() {
                let row = block.range.start + row as usize;
                tap.read(reading, tensors(index), row, block.rows);
            }
            tap.end_row();
            let pause = if gap == 0 { 0 } else { self.random(2 * gap as usize + 1) };
            row = row.saturating_add(1).saturating_add(u32::try_from(pause).unwrap_or(u32::MAX));
        }
        side.skip.store(row - rows, Relaxed);
    }
}

/// The length of a text in characters, and the share of its words that are known.
///
/// An empty text is missing.
pub(super) fn measure_words(text: &[u8], known: &Keys) -> [f64; 2] {
    if text.is_empty() {
        return [f64::NAN; 2];
    }
    let (length, share) = words::measure(text, |word| known.find(word) == 1);
    #[expect(clippy::cast_precision_loss, reason = "texts are shorter than 2^53 characters")]
    [length as f64, share]
}

struct Numbers<'a> {
    cells: &'a [AtomicU32],
    single: &'a [Column<f32>],
    double: &'a [Column<f64>],
    waiting: &'a Later,
    rows: usize,
    picked: Picked,
}

impl Visit for Numbers<'_> {
    fn visit<I: bytemuck::AnyBitPattern, T: Real>(
        &mut self,
        items: Items<'_, I>,
        real: impl Fn(I) -> T + Copy,
    ) {
        let columns = T::of(self.single, self.double);
        let width = columns.len();
        if items.len() != self.rows * width {
            return;
        }
        let waiting = T::waiting(&self.waiting.single, &self.waiting.double);
        let waits = waiting.takes(self.picked.count);
        for row in self.picked.rows() {
            if waits {
                let row = items.row(row * width, width);
                waiting.push(row, real, columns, |cell| bump(self.cells, cell));
                continue;
            }
            let mut columns = columns.iter();
            items.row(row * width, width).each(|item| {
                if let Some(column) = columns.next() {
                    bump(self.cells, column.cell(real(item)));
                }
            });
        }
    }
}

struct Summaries<'a> {
    cells: &'a [AtomicU32],
    columns: &'a [Column<f64>; 5],
    rows: usize,
    picked: Picked,
}

impl Visit for Summaries<'_> {
    fn visit<I: bytemuck::AnyBitPattern, T: Real>(
        &mut self,
        items: Items<'_, I>,
        real: impl Fn(I) -> T + Copy,
    ) {
        for row in self.picked.rows() {
            let measures = measure_row(items, real, (row, self.rows));
            for (column, value) in self.columns.iter().zip(measures) {
                bump(self.cells, column.cell(value));
            }
        }
    }
}

/// The measures of a row, from at most [`MEASURED_MAX`] of its elements.
pub(super) fn measure_row<I: bytemuck::AnyBitPattern, T: Real>(
    items: Items<'_, I>,
    real: impl Fn(I) -> T,
    (row, rows): (usize, usize),
) -> [f64; 5] {
    let width = items.len() / rows.max(1);
    let step = width.div_ceil(MEASURED_MAX).max(1);
    let elements = (row * width..(row + 1) * width).step_by(step);
    Summary::of(elements.map(|index| real(items.get(index)).wide())).values()
}

struct Nearest<'a> {
    cells: &'a [AtomicU32],
    /// Centres one after the other, their length, the cell of the first, and the bins of a row's norm.
    places: (&'a [f32], usize, u32, &'a Column<f64>),
    rows: usize,
    picked: Picked,
}

impl Visit for Nearest<'_> {
    fn visit<I: bytemuck::AnyBitPattern, T: Real>(
        &mut self,
        items: Items<'_, I>,
        real: impl Fn(I) -> T + Copy,
    ) {
        let (centres, width, first, norm) = self.places;
        // Rows of another length, which an open shape allows, have no place among the centres.
        let is_apart = items.len() != self.rows * width;
        for row in self.picked.rows() {
            let (cluster, length) = if is_apart {
                (None, f64::NAN)
            } else {
                nearest(items.row(row * width, width), real, centres, width)
            };
            if first > 0 {
                // Behind the cells of the centres: others, unseen, missing.
                let missing = centres.len() / width.max(1) + 2;
                let cluster = u32::try_from(cluster.unwrap_or(missing)).unwrap_or(0);
                bump(self.cells, first + cluster);
            }
            bump(self.cells, norm.cell(length));
        }
    }
}

/// The index of the nearest of some centres, and the length of a row; no centre is near a row that holds NaN.
pub(super) fn nearest<I: bytemuck::AnyBitPattern, T: Real>(
    row: Items<'_, I>,
    real: impl Fn(I) -> T + Copy,
    centres: &[f32],
    width: usize,
) -> (Option<usize>, f64) {
    let mut square = 0.0;
    row.each(|item| square += real(item).wide().powi(2));
    if square.is_nan() {
        return (None, square);
    }
    let distance = |centre: &[f32]| {
        let (mut sum, mut numbers) = (0.0, centre.iter());
        row.each(|item| {
            let centre = numbers.next().map_or(0.0, |number| f64::from(*number));
            sum += (real(item).wide() - centre).powi(2);
        });
        sum
    };
    let distances = centres.chunks_exact(width.max(1)).map(distance).enumerate();
    let nearest = distances.min_by(|a, b| a.1.total_cmp(&b.1));
    (nearest.map(|(index, _)| index), square.sqrt())
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use crate::{
        model::{Rows, Signature, TensorSpec},
        tensor::{Data, DataType, Shape, Strings},
    };

    use super::{
        super::{
            layout::Hints,
            profile::{Bins, Derivation, Feature, Profile},
        },
        *,
    };

    fn spec(name: &str, datatype: DataType, dims: &[i64]) -> TensorSpec {
        TensorSpec { name: name.to_owned(), datatype, dims: Some(dims.to_vec()), view: None }
    }

    fn feature(name: &str, bins: Bins) -> Feature {
        let counts = vec![10; bins.len()];
        Feature { name: name.to_owned(), bins, counts, moments: None, sample: Vec::new() }
    }

    /// Two numbers and a category a row.
    pub(in crate::drift) fn layout() -> Layout {
        let edges = || Bins::Numeric { edges: vec![0.0, 1.0, 2.0, 3.0] };
        let categories = vec!["a".to_owned(), "b".to_owned()];
        let profile = Profile {
            schema: 1,
            rows: 60,
            digest: String::new(),
            source: String::new(),
            derived: Vec::new(),
            features: vec![
                feature("x[0]", edges()),
                feature("x[1]", edges()),
                feature("c", Bins::Categorical { categories, others: Vec::new() }),
            ],
        };
        layout_by(Some(&profile))
    }

    /// Inputs of two numbers and a text.
    pub(in crate::drift) fn signature() -> Signature {
        let inputs =
            vec![spec("x", DataType::Fp32, &[-1, 2]), spec("c", DataType::Bytes, &[-1, 1])];
        Signature { inputs, rows: Rows::Same, ..Signature::default() }
    }

    /// The same by another profile, or with everything to be learned.
    pub(in crate::drift) fn layout_by(profile: Option<&Profile>) -> Layout {
        let hints = Hints { names: &[], is_batched: true, features_max: 8 };
        let (layout, wrong) = Layout::new(&signature(), profile, hints);
        assert_eq!(wrong, None);
        layout
    }

    /// A recorder for workers that have found this stage.
    pub(in crate::drift) fn counting_by(stage: Arc<Stage>) -> Recorder {
        let mut recorder = Recorder::new(layout(), Place::alone(2), 64);
        recorder.stages[0] = stage.into();
        recorder
    }

    pub(in crate::drift) fn request(rows: &[(f32, f32, &str)]) -> Vec<Input> {
        let count = i64::try_from(rows.len()).unwrap();
        let shape = |dims: &[i64]| Shape::new(dims).unwrap();
        let numbers = rows.iter().flat_map(|(a, b, _)| [*a, *b]).collect();
        let texts: Strings = rows.iter().map(|(_, _, text)| text).collect();
        let x = Tensor::new(shape(&[count, 2]), Data::Fp32(numbers)).unwrap();
        let c = Tensor::new(shape(&[count, 1]), Data::Bytes(texts)).unwrap();
        [("x", x), ("c", c)].map(|(name, tensor)| Input { name: name.to_owned(), tensor }).to_vec()
    }

    /// Counts over all workers, by feature.
    fn merged(recorder: &Recorder) -> Vec<Vec<u64>> {
        let stage = recorder.stage();
        let mut sums = vec![0_u64; stage.plan.len];
        for (_, shard) in stage.shards() {
            let counts = shard.counts(&stage.plan);
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += u64::from(count));
        }
        let own = |place: &Option<(usize, usize)>| {
            place.map_or_else(Vec::new, |(first, len)| sums[first..first + len].to_vec())
        };
        stage.plan.cells.iter().map(own).collect()
    }

    #[test]
    fn values_fall_into_the_bins_that_the_profile_names() {
        let recorder = Recorder::new(layout(), Place::alone(1), 1000);
        let rows = [(-1.0, 0.5, "a"), (2.5, f32::NAN, "x"), (9.0, f32::INFINITY, "")];
        recorder.inputs(WorkerId(0), &request(&rows), 3);
        let expected = [vec![1, 0, 0, 1, 1, 0, 0], vec![0, 1, 0, 0, 0, 1, 1], vec![1, 0, 0, 1, 1]];
        assert_eq!(merged(&recorder), expected);
        // A copy that a shadow runs, and a tensor of another width, count nothing.
        recorder.inputs(WorkerId(usize::MAX), &request(&rows), 3);
        recorder.inputs(WorkerId(0), &request(&rows)[..1], 6);
        assert_eq!(merged(&recorder)[2], expected[2]);
    }

    #[test]
    fn embeddings_count_by_their_nearest_centre_and_their_length() {
        let signature = Signature {
            inputs: vec![spec("e", DataType::Fp32, &[-1, 2])],
            rows: Rows::Same,
            ..Signature::default()
        };
        let cells = vec!["0".to_owned(), "1".to_owned()];
        let profile = Profile {
            schema: 1,
            rows: 60,
            digest: String::new(),
            source: String::new(),
            derived: vec![Derivation::Clusters {
                input: "e".to_owned(),
                centres: vec![vec![0.0, 0.0], vec![3.0, 4.0]],
            }],
            features: vec![
                feature("e.cluster", Bins::Categorical { categories: cells, others: Vec::new() }),
                feature("e.norm", Bins::Numeric { edges: vec![0.0, 2.0, 6.0] }),
            ],
        };
        let hints = Hints { names: &[], is_batched: true, features_max: 8 };
        let (layout, wrong) = Layout::new(&signature, Some(&profile), hints);
        assert_eq!(wrong, None);
        let recorder = Recorder::new(layout, Place::alone(1), 1000);
        let data = vec![0.1, 0.1, 3.0, 3.9, 3.0, 4.0, f32::NAN, 1.0];
        let tensor = Tensor::new(Shape::new(&[4, 2]).unwrap(), Data::Fp32(data)).unwrap();
        recorder.inputs(WorkerId(0), &[Input { name: "e".to_owned(), tensor }], 4);
        assert_eq!(merged(&recorder), [vec![1, 2, 0, 0, 1], vec![0, 1, 2, 0, 0, 1]]);
    }

    #[test]
    fn large_requests_are_thinned_evenly_and_both_numbers_are_known() {
        let recorder = Recorder::new(layout(), Place::alone(1), 60);
        let rows: Vec<_> =
            (0..1000).map(|row| (if row < 500 { 0.5 } else { 2.5 }, 0.5, "a")).collect();
        recorder.inputs(WorkerId(0), &request(&rows), rows.len());
        let stage = recorder.stage();
        let [seen, counted, _] = stage.shards().next().unwrap().1.rows();
        assert_eq!((seen, counted), (1000, 10));
        let first = &merged(&recorder)[0];
        assert_eq!((first[1], first[3]), (5, 5), "five of each half");
    }

    proptest! {
        #[test]
        fn a_stream_split_over_workers_counts_as_the_whole(
            rows in prop::collection::vec((-2.0..5.0_f32, -2.0..5.0_f32, 0..4_usize, 0..8_usize), 1..60)
        ) {
            let (split, whole) = (Recorder::new(layout(), Place::alone(8), 1000), Recorder::new(layout(), Place::alone(1), 1000));
            for (a, b, text, worker) in rows {
                let request = request(&[(a, b, ["a", "b", "z", ""][text])]);
                split.inputs(WorkerId(worker), &request, 1);
                whole.inputs(WorkerId(0), &request, 1);
            }
            prop_assert_eq!(merged(&split), merged(&whole));
        }
    }
}
