//! Text on a terminal: lines in several styles, bars, and a part of the screen that is redrawn in place.
//!
//! Always true: no line is wider than the terminal, and whoever leaves a redrawn part leaves the cursor visible.
//!
//! Not here: what stands in the lines.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
};

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// A part of the terminal that is drawn over again and again.
pub(super) struct Screen {
    /// Lines of the last frame.
    lines: usize,
    size: (usize, usize),
    coloured: bool,
}

impl Screen {
    /// Draws nothing yet.
    pub(super) fn new() -> Self {
        let choice = anstream::AutoStream::choice(&io::stdout());
        let coloured = choice != anstream::ColorChoice::Never;
        Self { lines: 0, size: size(), coloured }
    }

    /// Draws lines in place of the last ones, for so many columns and rows.
    pub(super) fn draw(&mut self, frame: impl FnOnce(usize, usize) -> Vec<Line>) -> io::Result<()> {
        let (columns, rows) = size();
        // The cursor moves control the terminal, they are no colours: written past what strips those.
        let mut out = String::from("\x1b[?2026h\x1b[?25l");
        if self.size == (columns, rows) {
            self.back(&mut out);
        } else {
            // Lines that were wrapped cannot be counted any more.
            out.push_str("\x1b[2J\x1b[H");
            self.size = (columns, rows);
        }
        let lines = frame(columns, rows);
        // One line stays free for the cursor.
        let lines = &lines[..lines.len().min(rows.saturating_sub(1))];
        for line in lines {
            out.push_str(&line.fit(columns, self.coloured));
            out.push_str("\x1b[K\n");
        }
        out.push_str("\x1b[J\x1b[?2026l");
        self.lines = lines.len();
        let mut stdout = io::stdout().lock();
        stdout.write_all(out.as_bytes())?;
        stdout.flush()
    }

    fn back(&self, out: &mut String) {
        if self.lines > 0 {
            let _ = write!(out, "\x1b[{}A", self.lines);
        }
        out.push('\r');
    }

    /// Says something in place of the last line, until the next frame.
    pub(super) fn note(&self, note: &str) -> io::Result<()> {
        let mut line = Line::default();
        line.add(Style::Bad, note);
        let mut out = String::from("\x1b[1A\r");
        out.push_str(&line.fit(self.size.0, self.coloured));
        out.push_str("\x1b[K\n");
        let mut stdout = io::stdout().lock();
        stdout.write_all(out.as_bytes())?;
        stdout.flush()
    }
}

/// True if whoever read the output has gone away: a pipe tells without being written to.
pub(super) fn is_left() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdout = io::stdout();
    let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let told = poll(&mut polled, Some(&now));
    told.is_ok() && polled[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut stdout = io::stdout().lock();
        // A terminal that has gone away needs no cursor.
        let _ = stdout.write_all(b"\x1b[?25h").and_then(|()| stdout.flush());
    }
}

/// Columns of the terminal that results go to; without limit where there is none.
pub(super) fn columns() -> usize {
    if io::stdout().is_terminal() { size().0 } else { usize::MAX }
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            (usize::from(size.ws_col), usize::from(size.ws_row))
        }
        _ => (80, 24),
    }
}

/// The look of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Bold,
    Faint,
    Good,
    Bad,
    /// To look at.
    Warn,
    Calm,
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "\x1b[1m",
            Self::Faint => "\x1b[2m",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[31m",
            Self::Warn => "\x1b[33m",
            Self::Calm => "\x1b[36m",
        }
    }
}

/// A line of text in several styles.
#[derive(Debug, Default)]
pub(super) struct Line(Vec<(Style, String)>);

impl Line {
    pub(super) fn of(style: Style, text: impl Into<String>) -> Self {
        Self(vec![(style, text.into())])
    }

    pub(super) fn add(&mut self, style: Style, text: impl Into<String>) {
        self.0.push((style, text.into()));
    }

    /// Adds text that takes so many columns, or more where it is longer, and a space.
    pub(super) fn cell(&mut self, style: Style, text: impl Into<String>, columns: usize) {
        let mut text = text.into();
        let missing = columns.saturating_sub(text.width()) + 1;
        text.extend(std::iter::repeat_n(' ', missing));
        self.add(style, text);
    }

    pub(super) fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| text.width()).sum()
    }

    /// The line in at most so many columns; one that is longer ends with an ellipsis.
    pub(super) fn fit(&self, columns: usize, coloured: bool) -> String {
        let whole = self.width() <= columns;
        let mut room = if whole { columns } else { columns.saturating_sub(1) };
        let mut out = String::new();
        for (style, text) in &self.0 {
            let code = if coloured { style.code() } else { "" };
            out.push_str(code);
            for c in text.chars() {
                let width = c.width().unwrap_or(0);
                if width > room {
                    room = 0;
                    break;
                }
                room -= width;
                out.push(c);
            }
            if !code.is_empty() {
                out.push_str("\x1b[0m");
            }
        }
        if !whole {
            out.push('…');
        }
        out
    }
}

/// A bar of so many columns, filled by a share in eighths of a column.
pub(super) fn bar(line: &mut Line, share: f64, columns: usize, style: Style) {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of some columns"
    )]
    let filled = (share.clamp(0.0, 1.0) * columns as f64 * 8.0).round() as usize;
    let part = EIGHTHS[filled % 8];
    let full = filled / 8;
    line.add(style, "█".repeat(full) + part);
    line.add(Style::Faint, "·".repeat(columns - full - usize::from(!part.is_empty())));
}

/// Text cut in its middle to at most so many columns, so that its end still tells it apart.
pub(super) fn shortened(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let room = columns.saturating_sub(1);
    let taken = |characters: &mut dyn Iterator<Item = char>, mut room: usize| -> Vec<char> {
        let fits = |character: &char| {
            let width = character.width().unwrap_or(0);
            let is_in = width <= room;
            room -= if is_in { width } else { room };
            is_in
        };
        characters.take_while(fits).collect()
    };
    let start = taken(&mut text.chars(), room - room / 2);
    let end = taken(&mut text.chars().rev(), room / 2);
    start.into_iter().chain(['…']).chain(end.into_iter().rev()).collect()
}

/// Text in lines of at most so many columns, broken between words.
pub(super) fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && line.width() + 1 + word.width() > columns {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_on_only_where_they_are_wanted_and_end_with_their_text() {
        let mut line = Line::of(Style::Bad, "fail");
        line.add(Style::Plain, " so");
        assert_eq!(line.fit(80, false), "fail so");
        assert_eq!(line.fit(80, true), "\x1b[31mfail\x1b[0m so");
        assert_eq!(line.fit(3, true), "\x1b[31mfa\x1b[0m…");
    }

    #[test]
    fn a_bar_is_as_long_as_its_share_in_eighths() {
        let drawn = |share: f64| {
            let mut line = Line::default();
            bar(&mut line, share, 4, Style::Calm);
            line.fit(80, false)
        };
        let shares = [-3.0, 0.0, 0.03125, 0.5, 0.78, 1.0, 9.0, f64::NAN];
        assert_eq!(
            shares.map(drawn),
            ["····", "····", "▏···", "██··", "███▏", "████", "████", "····"]
        );
    }

    #[test]
    fn long_text_keeps_both_ends_and_wrapped_text_its_words() {
        let cut = |columns| shortened("customer.last_purchase.amount", columns);
        assert_eq!(
            [cut(29), cut(12), cut(2), cut(1)],
            ["customer.last_purchase.amount", "custom…mount", "c…", "…"]
        );
        assert_eq!(shortened("待って待って", 7), "待…て");
        assert_eq!(wrapped("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrapped("uninterrupted so", 5), ["uninterrupted", "so"]);
        assert_eq!(wrapped("", 5), [""]);
    }
}
