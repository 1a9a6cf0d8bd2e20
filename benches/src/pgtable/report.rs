//! The table that is printed and written.

use crate::{Round, physical::YARDSTICKS, rows::ROWS};
use serde::Serialize;
use std::fmt;

/// Median and minimum over the rounds, in nanoseconds.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Figure {
    median: f64,
    min: f64,
}

impl Figure {
    fn new(mut all: Vec<f64>) -> Figure {
        all.sort_by(f64::total_cmp);
        Figure { median: all[all.len() / 2], min: all[0] }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.median {
            m if m < 10.0 => format!("{m:.2} ({:.2})", self.min),
            m => format!("{m:.1} ({:.1})", self.min),
        };
        f.pad(&text)
    }
}

#[derive(Serialize)]
struct Line {
    what: &'static str,
    per: &'static str,
    parity: bool,
    ours: Vec<Option<Figure>>,
    peers: Vec<Option<Figure>>,
    limit: Option<Figure>,
    /// The best peer's median over our first format's, and the same of minimums.
    over_best_peer: Option<[f64; 2]>,
    /// Our first format's median over the limit's.
    times_limit: Option<f64>,
}

#[derive(Serialize)]
pub(crate) struct Table {
    rounds: usize,
    yardsticks: Vec<(&'static str, Figure)>,
    formats: Vec<String>,
    peers: Vec<String>,
    lines: Vec<Line>,
    /// A pair of map and unmap on each of two threads: apart, and side by side in a cache line.
    threads: Vec<(String, Figure, Figure)>,
}

impl Table {
    pub(crate) fn new(rounds: &[Round]) -> Table {
        let over = |get: &dyn Fn(&Round) -> f64| Figure::new(rounds.iter().map(get).collect());
        let maybe = |get: &dyn Fn(&Round) -> Option<f64>| {
            rounds.iter().map(get).collect::<Option<Vec<f64>>>().map(Figure::new)
        };
        let first = &rounds[0];
        let pick = |ours: bool| -> Vec<usize> {
            (0..first.subjects.len()).filter(|i| first.subjects[*i].1 == ours).collect()
        };
        let (ours, peers) = (pick(true), pick(false));
        let names = |of: &[usize]| of.iter().map(|i| first.subjects[*i].0.clone()).collect();
        let lines = ROWS.iter().enumerate().map(|(n, row)| {
            let figures = |of: &[usize]| -> Vec<Option<Figure>> {
                of.iter().map(|i| maybe(&|r| r.subjects[*i].2[n])).collect()
            };
            let (our, peer) = (figures(&ours), figures(&peers));
            let limit = maybe(&|r| r.limits[n]);
            let least = |of: fn(&Figure) -> f64| peer.iter().flatten().map(of).reduce(f64::min);
            let over = |of: fn(&Figure) -> f64| Some(least(of)? / of(our[0].as_ref()?));
            Line {
                what: row.name,
                per: row.per,
                parity: row.parity,
                over_best_peer: over(|f| f.median).zip(over(|f| f.min)).map(<[f64; 2]>::from),
                times_limit: limit.zip(our[0]).map(|(l, us)| us.median / l.median),
                ours: our,
                peers: peer,
                limit,
            }
        });
        Table {
            rounds: rounds.len(),
            yardsticks: YARDSTICKS
                .iter()
                .enumerate()
                .map(|(i, n)| (*n, over(&|r| r.yardsticks[i])))
                .collect(),
            formats: names(&ours),
            peers: names(&peers),
            lines: lines.collect(),
            threads: (0..first.threads.len())
                .map(|i| (first.threads[i].0.clone(), over(&|r| r.threads[i].1), over(&|r| r.threads[i].2)))
                .collect(),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "nanoseconds, median (minimum) of {} rounds\n", self.rounds)?;
        for (name, figure) in &self.yardsticks {
            writeln!(f, "{name:<28} {figure}")?;
        }
        write!(f, "\n{:<50} {:<7}", "", "per")?;
        for name in self.formats.iter().chain(&self.peers) {
            write!(f, " {name:>20}")?;
        }
        writeln!(f, " {:>16} {:>12} {:>8}", "physical limit", "best peer/us", "us/limit")?;
        for line in &self.lines {
            write!(f, "{:<50} {:<7}", line.what, line.per)?;
            let text = |f: &Option<Figure>| f.map_or("-".into(), |f| f.to_string());
            for figure in line.ours.iter().chain(&line.peers) {
                write!(f, " {:>20}", text(figure))?;
            }
            let limit = text(&line.limit);
            let ratio = line.over_best_peer.map_or("-".into(), |[m, min]| format!("{m:.1} ({min:.1})"));
            let times = line.times_limit.map_or("-".into(), |t| format!("{t:.1}"));
            let parity = if line.parity { "  parity" } else { "" };
            writeln!(f, " {limit:>16} {ratio:>12} {times:>8}{parity}")?;
        }
        writeln!(f, "\ntwo threads, map + unmap 4K, a pair on each")?;
        for (name, apart, near) in &self.threads {
            writeln!(f, "{name:<28} far apart {apart:<16} in one cache line {near}")?;
        }
        Ok(())
    }
}
