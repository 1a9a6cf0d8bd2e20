//! The table that is printed and written.

use crate::{Kind, Round, physical::YARDSTICKS, rows::ROWS};
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
    targets: Vec<Option<Figure>>,
    peers: Vec<Option<Figure>>,
    others: Vec<Option<Figure>>,
    limit: Option<Figure>,
    /// For each target format: the best peer's median over ours, and the same of minimums.
    over_best_peer: Vec<Option<[f64; 2]>>,
    /// For each target format: our median over the limit's.
    times_limit: Vec<Option<f64>>,
    /// The slowest format's median over the fastest's.
    spread: Option<f64>,
}

#[derive(Serialize)]
pub(crate) struct Table {
    rounds: usize,
    yardsticks: Vec<(&'static str, Figure)>,
    targets: Vec<String>,
    peers: Vec<String>,
    others: Vec<String>,
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
        let pick = |kind: Kind| -> Vec<usize> {
            (0..first.subjects.len()).filter(|i| first.subjects[*i].1 == kind).collect()
        };
        let (targets, peers, others) = (pick(Kind::Target), pick(Kind::Peer), pick(Kind::Other));
        let names = |of: &[usize]| of.iter().map(|i| first.subjects[*i].0.clone()).collect();
        let lines = ROWS.iter().enumerate().map(|(n, row)| {
            let figures = |of: &[usize]| -> Vec<Option<Figure>> {
                of.iter().map(|i| maybe(&|r| r.subjects[*i].2[n])).collect()
            };
            let (target, peer, other) = (figures(&targets), figures(&peers), figures(&others));
            let limit = maybe(&|r| r.limits[n]);
            let least = |of: fn(&Figure) -> f64| peer.iter().flatten().map(of).reduce(f64::min);
            let over = |us: &Option<Figure>| {
                let us = us.as_ref()?;
                Some([least(|f| f.median)? / us.median, least(|f| f.min)? / us.min])
            };
            let ours = || target.iter().chain(&other).flatten().map(|f| f.median);
            let (fastest, slowest) = (ours().reduce(f64::min), ours().reduce(f64::max));
            Line {
                what: row.name,
                per: row.per,
                parity: row.parity,
                over_best_peer: target.iter().map(over).collect(),
                times_limit: target.iter().map(|us| Some((*us)?.median / limit?.median)).collect(),
                spread: slowest.zip(fastest).map(|(slow, fast)| slow / fast),
                targets: target,
                peers: peer,
                others: other,
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
            targets: names(&targets),
            peers: names(&peers),
            others: names(&others),
            lines: lines.collect(),
            threads: (0..first.threads.len())
                .map(|i| (first.threads[i].0.clone(), over(&|r| r.threads[i].1), over(&|r| r.threads[i].2)))
                .collect(),
        }
    }

    /// What has targets, beside the peers and the limit.
    fn beside_peers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{:<50} {:<7}", "", "per")?;
        for name in self.targets.iter().chain(&self.peers) {
            write!(f, " {name:>20}")?;
        }
        write!(f, " {:>16}", "physical limit")?;
        for name in &self.targets {
            write!(f, " {:>24} {:>16}", format!("best peer/{name}"), format!("{name}/limit"))?;
        }
        writeln!(f)?;
        for line in &self.lines {
            write!(f, "{:<50} {:<7}", line.what, line.per)?;
            for figure in line.targets.iter().chain(&line.peers) {
                write!(f, " {:>20}", text(*figure))?;
            }
            write!(f, " {:>16}", text(line.limit))?;
            for (over, times) in line.over_best_peer.iter().zip(&line.times_limit) {
                let ratio = text(over.map(|[m, min]| format!("{m:.1} ({min:.1})")));
                write!(f, " {ratio:>24} {:>16}", text(times.map(|t| format!("{t:.1}"))))?;
            }
            writeln!(f, "{}", if line.parity { "  parity" } else { "" })?;
        }
        Ok(())
    }

    /// All formats: none should take more than twice what another takes.
    fn formats(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nall formats; pages are the format's smallest, 1 GiB is 2^18 of them, 2M one level higher"
        )?;
        write!(f, "{:<50} {:<7}", "", "per")?;
        for name in self.targets.iter().chain(&self.others) {
            write!(f, " {name:>14}")?;
        }
        writeln!(f, " {:>16}", "slowest/fastest")?;
        for line in &self.lines {
            write!(f, "{:<50} {:<7}", line.what, line.per)?;
            for figure in line.targets.iter().chain(&line.others) {
                write!(f, " {:>14}", text(*figure))?;
            }
            writeln!(f, " {:>16}", text(line.spread.map(|s| format!("{s:.1}"))))?;
        }
        Ok(())
    }
}

/// What there is, or a dash.
fn text(what: Option<impl fmt::Display>) -> String {
    what.map_or("-".into(), |w| w.to_string())
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "nanoseconds, median (minimum) of {} rounds\n", self.rounds)?;
        for (name, figure) in &self.yardsticks {
            writeln!(f, "{name:<28} {figure}")?;
        }
        self.beside_peers(f)?;
        if !self.others.is_empty() {
            self.formats(f)?;
        }
        writeln!(f, "\ntwo threads, map + unmap 4K, a pair on each")?;
        for (name, apart, near) in &self.threads {
            writeln!(f, "{name:<28} far apart {apart:<16} in one cache line {near}")?;
        }
        Ok(())
    }
}
