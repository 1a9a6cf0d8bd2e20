//! The report as text.

use crate::table::{self, Table, count, duration, plural};
use portcullis_machine::{
    oracle::Check,
    report::{DeviceReport, Report},
    scenario::copy::{Action, CopyConfig},
};
use std::{
    collections::BTreeSet,
    fmt::{self, Write},
    path::Path,
};

/// A cell of a device that has no such thing.
const NONE: &str = "-";

/// Devices side by side in one table.
const ABREAST: usize = 4;

/// The command that repeats a run.
pub struct Again<'a> {
    /// The input, where the command line named one.
    pub input: Option<&'a Path>,
    /// What was run.
    pub config: &'a CopyConfig,
}

impl fmt::Display for Again<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CopyConfig { engines, frames, seed, adversary, threads, .. } = self.config;
        f.write_str("portcullis sim")?;
        if let Some(input) = self.input {
            write!(f, " --input {}", quoted(&input.display().to_string()))?;
        }
        write!(f, " --devices {engines}")?;
        if let Some(frames) = frames {
            write!(f, " --frames {frames}")?;
        }
        write!(f, " --seed {seed} --adversary {}", format!("{adversary:?}").to_lowercase())?;
        match threads {
            Some(threads) => write!(f, " --threads {threads}"),
            None => Ok(()),
        }
    }
}

/// As a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The line that is printed before the run begins.
pub fn headline(input: &str, config: &CopyConfig, frames: usize) -> String {
    format!(
        "Copying {} of {input} through {} behind one Intel VT-d: {frames} page frames, seed {}, adversary {}.\n",
        plural(config.input.len() as u64, "byte"),
        plural(config.engines as u64, "copy engine"),
        config.seed,
        format!("{:?}", config.adversary).to_lowercase(),
    )
}

/// Everything after the headline.
pub fn report(r: &Report, again: &str) -> String {
    let mut out = String::new();
    devices(&mut out, r);
    counts(&mut out, r);
    blocked(&mut out, r);
    explained(&mut out, r);
    adversary(&mut out, r);
    invariants(&mut out, r);
    verdict(&mut out, r, again);
    life(&mut out, r);
    let _ = writeln!(out, "\nReal time: {:.2} s.", r.timing.seconds);
    out
}

fn heading(out: &mut String, title: &str) {
    let _ = writeln!(out, "\n{title}\n{}", "-".repeat(title.chars().count()));
}

fn devices(out: &mut String, r: &Report) {
    heading(out, "Devices");
    let ways: BTreeSet<&String> = r.devices.iter().flat_map(|d| d.settled.keys()).collect();
    for (i, devices) in r.devices.chunks(ABREAST).enumerate() {
        if i > 0 {
            out.push('\n');
        }
        let mut table = Table::default();
        let mut row = |name: &str, of: &dyn Fn(&DeviceReport) -> String| {
            let cells: Vec<String> = devices.iter().map(of).collect();
            // What none of them has is no row.
            if cells.iter().any(|cell| cell != NONE) {
                table.row(name, cells);
            }
        };
        row("", &|d| d.id.clone());
        row("", &|d| kind(d).0);
        row("", &|d| kind(d).1);
        row("bytes moved", &|d| count(d.bytes));
        row("accesses", &|d| count(d.accesses));
        row("requests blocked", &|d| count(d.blocked.values().sum()));
        row("IOTLB hits", &|d| count(d.iotlb_hits));
        row("IOTLB misses", &|d| count(d.iotlb_misses));
        row("device-TLB hits", &|d| count(d.device_tlb_hits));
        row("device-TLB misses", &|d| count(d.device_tlb_misses));
        row("page requests", &|d| count(d.page_requests));
        row("page request groups", &|d| count(d.groups));
        for way in &ways {
            row(&settled(way), &|d| count(d.settled.get(*way).copied().unwrap_or(0)));
        }
        row("request to response, p50", &|d| optional(d.response_p50_ns.map(duration)));
        row("request to response, p99", &|d| optional(d.response_p99_ns.map(duration)));
        row("seen by the core", &|d| count(d.core.requests));
        row("  refused, no right to ask", &|d| count(d.core.unauthorised));
        row("  refused, over its share", &|d| count(d.core.quota));
        row("  refused, malformed", &|d| count(d.core.malformed));
        row("  dropped, the last never came", &|d| count(d.core.partials_dropped));
        row("pages brought in", &|d| optional(d.pager.map(|p| count(p.filled))));
        row("pages evicted", &|d| optional(d.pager.map(|p| count(p.evicted))));
        row("pages spared by the clock", &|d| optional(d.pager.map(|p| count(p.spared))));
        row("interrupts arrived", &|d| count(d.interrupts));
        row("copy", &|d| optional(d.identical.map(|same| if same { "identical" } else { "DIFFERS" }.into())));
        out.push_str(&table.to_string());
    }
    let _ = writeln!(
        out,
        "\n  Times are {}. An access that the device's own TLB translates never asks the IOTLB.",
        if r.threads.is_some() { "real" } else { "virtual" }
    );
    let _ =
        writeln!(out, "  Interrupts are writes to 0xFEEx_xxxx, which arrive: nothing remaps interrupts yet.");
}

/// What the scenario counted, where it counts.
fn counts(out: &mut String, r: &Report) {
    if r.counts.is_empty() {
        return;
    }
    heading(out, "What happened");
    let width = r.counts.values().map(|n| count(*n).len()).max().unwrap_or(0);
    for (what, n) in &r.counts {
        let _ = writeln!(out, "  {:>width$}  {what}", count(*n));
    }
}

fn settled(way: &str) -> String {
    match way.split_once(": ") {
        Some((who, answer)) => format!("  settled by {who}, {answer}"),
        None => format!("  settled by a reset, {way}"),
    }
}

/// Two lines that say what a device is.
fn kind(d: &DeviceReport) -> (String, String) {
    match (d.pasid, d.identical, d.role.split_once(", ")) {
        (Some(pasid), ..) => ("copy engine".into(), format!("in PASID {pasid}")),
        (None, Some(_), _) => ("copy engine".into(), "by requester id".into()),
        (None, None, Some((what, how))) => {
            (what.into(), how.replace("trusted, floods page requests", "floods requests"))
        }
        (None, None, None) => (d.role.clone(), String::new()),
    }
}

fn optional(text: Option<String>) -> String {
    text.unwrap_or_else(|| NONE.into())
}

fn blocked(out: &mut String, r: &Report) {
    heading(out, "Requests blocked, with the reason");
    let refused: Vec<(&DeviceReport, &String, u64)> =
        r.devices.iter().flat_map(|d| d.blocked.iter().map(move |(why, n)| (d, why, *n))).collect();
    if refused.is_empty() {
        let _ = writeln!(out, "  none");
    }
    let width = refused.iter().map(|(_, _, n)| count(*n).len()).max().unwrap_or(0);
    let mut last = "";
    for (device, why, n) in refused {
        let id = if device.id == last { "" } else { &device.id };
        last = &device.id;
        table::wrapped(out, &format!("  {id:8}{:>width$}  ", count(n)), why);
    }
    let _ = writeln!(
        out,
        "  {} told to the observer, {} found no room with it.",
        plural(r.fault_records, "fault record"),
        count(r.fault_records_lost)
    );
}

fn adversary(out: &mut String, r: &Report) {
    heading(out, &format!("What the adversary did ({})", r.adversary));
    let width = r.adversary_actions.values().map(|n| count(*n).len()).max().unwrap_or(0);
    for (action, n) in &r.adversary_actions {
        let _ = writeln!(out, "  {:18}{:>width$}  {}", action.to_string(), count(*n), meaning(*action));
    }
}

fn meaning(action: Action) -> &'static str {
    match action {
        Action::Delay => "a request, message or completion held back in the fabric",
        Action::Reorder => "an invalidation command taken before an earlier, independent one",
        Action::Evict => "a cached translation forgotten, though nobody asked for it",
        Action::Spurious => "a page request or translation request that nobody needed",
        Action::Overflow => "a burst of page requests beyond the credits granted",
        Action::TableFault => "a table access failed while a page request was served",
    }
}

fn invariants(out: &mut String, r: &Report) {
    heading(out, "Invariants");
    let v = &r.invariants;
    invariant(
        out,
        "isolation",
        &v.isolation,
        "Each access, let through or landed, lies in a mapping of the domain its device is attached to.",
    );
    invariant(
        out,
        "settled once",
        &v.settled_once,
        "Each last page request gets one answer, and no answer comes that nobody waits for.",
    );
    invariant(
        out,
        "quiescence",
        &v.quiescence,
        "After a detach no handler of it runs, and no access of it lands.",
    );
}

fn invariant(out: &mut String, name: &str, check: &Check, says: &str) {
    let _ = writeln!(
        out,
        "  {name:14}{:>11} checked, {}",
        count(check.checked),
        plural(check.violations, "violation")
    );
    let _ = writeln!(out, "    {says}");
    for described in &check.described {
        table::wrapped(out, "    VIOLATED  ", described);
    }
    let rest = check.violations.saturating_sub(check.described.len() as u64);
    if rest > 0 {
        let _ = writeln!(out, "    and {} more", count(rest));
    }
}

fn verdict(out: &mut String, r: &Report, again: &str) {
    heading(out, "Verdict");
    let copies = r.devices.iter().filter(|d| d.identical.is_some()).count() as u64;
    let good = r.devices.iter().filter(|d| d.identical == Some(true)).count() as u64;
    if r.ok {
        let all = match copies {
            0 => "All went as it should, and".into(),
            1 => "The copy is identical to the input, and".into(),
            2 => "Both copies are identical to the input, and".into(),
            _ => format!("All {copies} copies are identical to the input, and"),
        };
        let _ = writeln!(out, "  {all} no invariant is broken.");
    } else {
        if copies > 0 {
            let _ = writeln!(out, "  FAILED: {good} of {} identical to the input.", plural(copies, "copy"));
        } else {
            let _ = writeln!(out, "  FAILED.");
        }
        for problem in &r.problems {
            table::wrapped(out, "  problem       ", problem);
        }
        for d in r.devices.iter().filter(|d| d.order_violations > 0) {
            let writes = plural(d.order_violations as u64, "configuration write");
            let _ = writeln!(out, "  problem       {}: {writes} out of PCIe's order", d.id);
        }
    }
    if let Some(sha256) = &r.input_sha256 {
        let _ = writeln!(out, "  SHA-256       {sha256}");
    }
    for d in r.devices.iter().filter(|d| d.identical == Some(false)) {
        let _ = writeln!(out, "    {}     {}", d.id, d.sha256.as_deref().unwrap_or("nothing was written"));
    }
    schedule(out, r);
    let _ = writeln!(out, "  run it again  {again}");
}

fn schedule(out: &mut String, r: &Report) {
    if let (Some(ns), Some(steps), Some(hash)) = (r.virtual_ns, r.steps, &r.schedule_hash) {
        let _ = writeln!(out, "  virtual time  {} in {} steps", duration(ns), count(steps));
        let _ = writeln!(out, "  schedule      {hash} ({})", r.strategy);
    }
    let at_once = plural(r.resolvers_at_once.into(), "resolver");
    if let Some(t) = &r.threads {
        let _ = writeln!(out, "  schedule      {}", r.strategy);
        let _ = writeln!(
            out,
            "  threads       {}, {at_once} at once at most",
            plural(t.workers as u64, "worker")
        );
        let _ = writeln!(
            out,
            "  page faults   {} served in {}, {} a second",
            count(t.served),
            duration(t.working_ns),
            count(t.served_per_second as u64)
        );
    }
}

fn explained(out: &mut String, r: &Report) {
    if r.explained.is_empty() {
        return;
    }
    heading(out, "The first faults, as the core explains them");
    for fault in &r.explained {
        for line in fault.lines() {
            // A line that begins with spaces goes on with the one above.
            let text = line.trim_start();
            table::wrapped(out, &format!("  {:1$}", "", line.len() - text.len()), text);
        }
    }
}

fn life(out: &mut String, r: &Report) {
    heading(out, "The life of one page request");
    if r.life.is_empty() {
        let _ = writeln!(out, "  No page request of the first device went the whole way in this run.");
    }
    for line in &r.life {
        // The time takes its place from the line itself.
        let start = line.find("ns  ").map_or(0, |i| i + 4);
        let (time, text) = line.split_at(start);
        table::wrapped(out, &format!("  {time}"), text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_machine::scenario::copy;

    #[test]
    fn a_violation_is_told_and_is_no_success() {
        let mut config = CopyConfig::new(vec![7; 20_000].into());
        config.mutations.answer_twice = true;
        let outcome = copy::run(&config).unwrap();
        assert!(!outcome.report.ok);
        let text = report(&outcome.report, "portcullis sim");
        for part in ["FAILED: ", "    VIOLATED  ", " violations"] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert!(!text.contains("no invariant is broken"), "{text}");
    }

    #[test]
    fn a_word_is_quoted_where_a_shell_would_change_it() {
        assert_eq!(quoted("a/b-c_d.e"), "a/b-c_d.e");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
