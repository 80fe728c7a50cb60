//! Tables and paragraphs for a terminal, as text with styles. Anstream drops the styles where nobody would see them.

use std::fmt::Write;

use anstyle::Style;

use crate::paint;

/// The width that is reckoned with. Rows may be longer: a terminal breaks them, and a pipe does not care.
const WIDTH: usize = 80;

/// One cell.
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub fn new(text: impl Into<String>) -> Cell {
        Cell { text: text.into(), style: Style::new() }
    }

    /// What is not known, or does not apply.
    pub fn none() -> Cell {
        Cell::new("-").style(paint::DIM)
    }

    pub fn style(mut self, style: Style) -> Cell {
        self.style = style;
        self
    }
}

/// On which side the text of a column stands.
#[derive(Clone, Copy)]
pub enum Side {
    Left,
    Right,
}

/// Rows under a heading, each column as wide as its widest cell.
pub struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub fn new(columns: &[(&'static str, Side)]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes it out, two blanks in.
    pub fn write(self, out: &mut String) {
        let titles = self.columns.iter().map(|(title, _)| Cell::new(*title).style(paint::HEADING)).collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|i| {
                let cells = self.rows.iter().filter_map(|row| row.get(i)).map(|cell| width(&cell.text));
                cells.chain([self.columns[i].0.len()]).max().unwrap_or(0)
            })
            .collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            out.push(' ');
            let last = row.len().saturating_sub(1);
            for (i, ((cell, &(_, side)), &column)) in row.iter().zip(&self.columns).zip(&widths).enumerate() {
                let fill = " ".repeat(column - width(&cell.text));
                let style = cell.style;
                // Writing into a `String` does not fail, here and below.
                let _ = match side {
                    Side::Right => write!(out, " {fill}{style}{}{style:#}", cell.text),
                    Side::Left if i == last => write!(out, " {style}{}{style:#}", cell.text),
                    Side::Left => write!(out, " {style}{}{style:#}{fill}", cell.text),
                };
                if i != last {
                    out.push(' ');
                }
            }
            out.push('\n');
        }
    }
}

/// Writes a paragraph, broken between words, `indent` blanks in and two more from its second line on.
pub fn paragraph(out: &mut String, indent: usize, style: Style, text: &str) {
    item(out, &" ".repeat(indent), indent + 2, style, text);
}

/// Writes a paragraph after `lead`, which is not broken; its further lines are `indent` blanks in. The style is for the
/// paragraph alone.
pub fn item(out: &mut String, lead: &str, indent: usize, style: Style, text: &str) {
    let mut room = WIDTH.saturating_sub(width(&anstream::adapter::strip_str(lead).to_string()));
    let mut lead = lead.to_owned();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && width(&line) + 1 + width(word) > room {
            let _ = writeln!(out, "{lead}{style}{line}{style:#}");
            (lead, room) = (" ".repeat(indent), WIDTH.saturating_sub(indent));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(out, "{lead}{style}{line}{style:#}");
}

/// In characters: what is shown here has no wide ones but in the names of files, which come last in their line.
fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_in_line() {
        let mut table = Table::new(&[("N", Side::Right), ("STATE", Side::Left), ("AGE", Side::Left)]);
        assert!(table.is_empty());
        table.row(vec![Cell::new("7"), Cell::new("serving").style(paint::GOOD), Cell::new("1 s")]);
        table.row(vec![Cell::new("1234"), Cell::none(), Cell::new("10 s")]);
        let mut text = String::new();
        table.write(&mut text);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(text, "     N  STATE    AGE\n     7  serving  1 s\n  1234  -        10 s\n");
    }

    #[test]
    fn paragraphs_are_broken_between_words() {
        let mut text = String::new();
        paragraph(&mut text, 2, Style::new(), &["word"; 20].join(" "));
        paragraph(&mut text, 2, Style::new(), &"w".repeat(100));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.iter().map(|l| l.len()).collect::<Vec<_>>(), [76, 28, 102]);
        assert!(lines[1].starts_with("    word"));
    }
}
