//! From times to columns: what stands in each cell of a bar and of the axis.

use std::time::Duration;

use super::life::{Ending, Life, Stretch, Turn};

/// A stretch of time, shown in some columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    start: u64,
    /// Nanoseconds that a column stands for.
    cell: u64,
    pub width: u16,
}

/// What a cell of a bar shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    Stretch(Stretch),
    Mark(Mark),
}

/// What happened within a cell. The greater is shown where several did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    Start,
    Drain,
    Recovery,
    Stall,
    Exit,
    /// Its end was overwritten.
    Gone,
    Death,
}

impl Window {
    /// The window of `span` that ends at `end`. It begins and ends at whole columns of absolute time, so that bars move
    /// by whole columns and what stands in them does not flicker.
    pub fn new(end: u64, span: Duration, width: u16) -> Window {
        let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let cell = (span / u64::from(width.max(1))).max(1);
        let end = end / cell * cell;
        let before = cell.saturating_mul(u64::from(width.max(1)) - 1);
        Window { start: end.saturating_sub(before), cell, width }
    }

    pub fn start(&self) -> u64 {
        self.start
    }

    /// The first instant after it.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.cell.saturating_mul(u64::from(self.width)))
    }

    /// The column of an instant, if it is within the window.
    pub fn column(&self, at: u64) -> Option<u16> {
        let column = at.checked_sub(self.start)? / self.cell;
        u16::try_from(column).ok().filter(|&column| column < self.width)
    }

    fn clamped(&self, at: u64) -> u16 {
        let column = at.saturating_sub(self.start) / self.cell;
        u16::try_from(column).unwrap_or(u16::MAX).min(self.width.saturating_sub(1))
    }

    /// Where labels stand, and what they say: how long before `now` that was.
    pub fn ticks(&self, now: u64) -> Vec<(u16, String)> {
        const STEPS: [u64; 17] =
            [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400, 21_600, 86_400];
        // A label has up to six characters, and some room.
        let least = self.cell.saturating_mul(9);
        let step = STEPS.iter().map(|s| s * 1_000_000_000).find(|&step| step >= least);
        let step = step.unwrap_or(7 * 86_400_000_000_000);
        let mut ticks = Vec::new();
        let first = now.saturating_sub(self.end()) / step;
        for number in first..first.saturating_add(u64::from(self.width)) {
            let Some(at) = now.checked_sub(number.saturating_mul(step)) else { break };
            if at < self.start {
                break;
            }
            if let Some(column) = self.column(at) {
                ticks.push((column, label(Duration::from_nanos(now - at))));
            }
        }
        ticks
    }

    /// The cells of a life. `looked` is when it was last seen.
    pub fn bar(&self, life: &Life, looked: u64, stall_after: Duration) -> Vec<Option<Ink>> {
        let mut cells = vec![None; usize::from(self.width)];
        let until = life.until(looked);
        if until < self.start || life.began >= self.end() || self.width == 0 {
            return cells;
        }
        let stretches = life.stretches(looked, stall_after);
        for (index, &(from, stretch)) in stretches.iter().enumerate() {
            let to = stretches.get(index + 1).map_or(until, |&(next, _)| next).min(until);
            if from >= self.end() || to < self.start || to < from {
                continue;
            }
            for cell in &mut cells[usize::from(self.clamped(from))..=usize::from(self.clamped(to))] {
                *cell = Some(Ink::Stretch(stretch));
            }
        }
        for (at, mark) in marks(life, until) {
            let Some(column) = self.column(at) else { continue };
            if let Some(cell) = cells.get_mut(usize::from(column)) {
                *cell = match *cell {
                    Some(Ink::Mark(there)) => Some(Ink::Mark(there.max(mark))),
                    _ => Some(Ink::Mark(mark)),
                };
            }
        }
        cells
    }
}

fn marks(life: &Life, until: u64) -> Vec<(u64, Mark)> {
    let mut all = Vec::new();
    if life.began_known {
        all.push((life.began, Mark::Start));
    }
    all.extend(life.turns.iter().map(|&(at, turn)| {
        let mark = match turn {
            Turn::Drains => Mark::Drain,
            Turn::Stalls => Mark::Stall,
            Turn::Recovers => Mark::Recovery,
        };
        (at, mark)
    }));
    match life.end {
        Some(end) => {
            let mark = match end.how {
                Ending::Exited => Mark::Exit,
                Ending::Died => Mark::Death,
                Ending::Untold => Mark::Gone,
            };
            all.push((until, mark));
        }
        None if life.is_gone() => all.push((until, Mark::Death)),
        None => {}
    }
    all
}

/// `-90s` as the axis says it: `-1m30`.
fn label(ago: Duration) -> String {
    let seconds = ago.as_secs();
    let two = |major: u64, unit: &str, minor: u64| match minor {
        0 => format!("-{major}{unit}"),
        _ => format!("-{major}{unit}{minor:02}"),
    };
    match seconds {
        0 => "now".to_owned(),
        1..60 => format!("-{seconds}s"),
        60..3_600 => two(seconds / 60, "m", seconds % 60),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::super::life::End;
    use super::*;
    use headcount::Role;

    const SECOND: u64 = 1_000_000_000;

    fn drawn(life: &Life, window: Window, now: u64) -> String {
        window
            .bar(life, now, Duration::from_secs(5))
            .iter()
            .map(|ink| match ink {
                None => ' ',
                Some(Ink::Stretch(Stretch::Starting)) => '-',
                Some(Ink::Stretch(Stretch::Serving)) => '=',
                Some(Ink::Stretch(Stretch::Draining)) => '~',
                Some(Ink::Stretch(Stretch::Stalled)) => '.',
                Some(Ink::Mark(Mark::Start)) => '[',
                Some(Ink::Mark(Mark::Drain)) => 'v',
                Some(Ink::Mark(Mark::Stall)) => '!',
                Some(Ink::Mark(Mark::Recovery)) => '+',
                Some(Ink::Mark(Mark::Exit)) => ']',
                Some(Ink::Mark(Mark::Death)) => 'X',
                Some(Ink::Mark(Mark::Gone)) => '?',
            })
            .collect()
    }

    /// 20 columns of a second each, from second 100.
    fn window() -> Window {
        Window::new(119 * SECOND, Duration::from_secs(20), 20)
    }

    fn life(began: u64) -> Life {
        Life::new(0, (Role::Worker, 1, 77), began * SECOND)
    }

    #[test]
    fn a_life_from_before_the_window_comes_in_from_the_left() {
        assert_eq!(drawn(&life(3), window(), 119 * SECOND), "=".repeat(20));
    }

    #[test]
    fn every_turn_is_marked() {
        let mut life = life(102);
        life.turns =
            vec![(106 * SECOND, Turn::Stalls), (108 * SECOND, Turn::Recovers), (110 * SECOND, Turn::Drains)];
        life.end = Some(End { at: 115 * SECOND, how: Ending::Exited });
        assert_eq!(drawn(&life, window(), 119 * SECOND), "  [===!.+=v~~~~]    ");
    }

    #[test]
    fn a_worker_that_recovers_while_it_drains_goes_on_draining() {
        let mut life = life(1);
        life.turns =
            vec![(102 * SECOND, Turn::Drains), (105 * SECOND, Turn::Stalls), (107 * SECOND, Turn::Recovers)];
        assert_eq!(drawn(&life, window(), 110 * SECOND), "==v~~!.+~~~         ");
    }

    #[test]
    fn a_short_life_is_a_death_and_no_start() {
        let mut life = life(104);
        life.end = Some(End { at: 104 * SECOND + 5, how: Ending::Died });
        assert_eq!(drawn(&life, window(), 119 * SECOND).trim_end(), "    X");
    }

    #[test]
    fn what_lies_outside_leaves_no_trace() {
        let mut over = life(3);
        over.end = Some(End { at: 99 * SECOND, how: Ending::Died });
        let blank = " ".repeat(20);
        assert_eq!(drawn(&over, window(), 119 * SECOND), blank);
        assert_eq!(drawn(&life(300), window(), 400 * SECOND), blank);
    }

    #[test]
    fn no_time_is_too_wild_and_no_window_too_narrow() {
        let mut wild = life(1);
        wild.turns = vec![(u64::MAX, Turn::Drains), (0, Turn::Stalls), (7, Turn::Recovers)];
        wild.end = Some(End { at: 0, how: Ending::Untold });
        for width in [0, 1, 2, 500] {
            for end in [0, 1, u64::MAX] {
                for span in [Duration::ZERO, Duration::from_secs(1), Duration::MAX] {
                    let window = Window::new(end, span, width);
                    assert_eq!(window.bar(&wild, end, Duration::MAX).len(), usize::from(width));
                    window.ticks(end);
                }
            }
        }
    }

    #[test]
    fn bars_move_by_whole_columns() {
        let moved = |end| Window::new(end, Duration::from_secs(20), 20).start();
        assert_eq!(moved(119 * SECOND), moved(119 * SECOND + 999_999_999));
        assert_eq!(moved(119 * SECOND) + SECOND, moved(120 * SECOND));
    }

    #[test]
    fn the_axis_is_labelled_from_now_backwards() {
        let window = Window::new(1_000 * SECOND, Duration::from_secs(120), 40);
        let labels: Vec<_> =
            window.ticks(1_000 * SECOND).into_iter().map(|(c, l)| format!("{c} {l}")).collect();
        assert_eq!(labels, ["39 now", "29 -30s", "19 -1m", "9 -1m30"]);
        let before = Window::new(900 * SECOND, Duration::from_secs(120), 40);
        let labels: Vec<_> =
            before.ticks(1_000 * SECOND).into_iter().map(|(c, l)| format!("{c} {l}")).collect();
        assert_eq!(labels, ["32 -2m", "22 -2m30", "12 -3m", "2 -3m30"]);
    }
}
