//! Counts tests from what their runners print.
//!
//! A target that ended without saying how many passed and failed, or has none at all, is itself a failure, with its reason.

use std::ops::AddAssign;

/// Lines that are quoted of a runner: of its account of what failed the first, without one its last.
const QUOTED: usize = 200;

/// How many tests passed and failed, and what the runners said of those that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    /// Tests that failed, each of `reasons` counted as one.
    pub failed: u64,
    /// What failed beside the tests.
    pub reasons: Vec<String>,
    /// The names of the tests that failed, as far as the runner reported them.
    pub names: Vec<String>,
    /// How long each target took, in seconds.
    pub seconds: Vec<(String, u64)>,
    /// From each runner with a failure, what a person wants to read of its output.
    pub quotes: Vec<String>,
}

impl Tally {
    pub fn failure(reason: impl Into<String>) -> Self {
        Self { failed: 1, reasons: vec![reason.into()], ..Self::default() }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.reasons.extend(other.reasons);
        self.names.extend(other.names);
        self.seconds.extend(other.seconds);
        self.quotes.extend(other.quotes);
    }
}

/// What a job prints before it starts a target.
pub const BEGIN: &str = "== begin ";
/// What a job prints when a target ended, with its exit status and the seconds that it took.
pub const END: &str = "== end ";

/// Counts the output of a job that ran `targets`, each between its lines [`BEGIN`] and [`END`].
pub fn job(output: &str, targets: &[String]) -> Tally {
    let mut total = Tally::default();
    for target in targets {
        let begin = format!("{BEGIN}{target}");
        let mut lines = output.lines().skip_while(|line| line.trim_end() != begin).skip(1).peekable();
        if lines.peek().is_none() {
            total += Tally::failure(format!("{target} did not run"));
            continue;
        }
        let mut text = Vec::new();
        let mut status = None;
        for line in lines {
            if let Some(end) = line.strip_prefix(END) {
                let mut words = end.split_whitespace();
                status = words.next().and_then(|word| word.parse().ok());
                let seconds = words.next().and_then(|word| word.parse().ok());
                total.seconds.extend(seconds.map(|seconds| (target.clone(), seconds)));
                break;
            }
            text.push(line);
        }
        total += this(target, &text.join("\n"), status);
    }
    total
}

/// Counts the output of one runner that ended with `status`, or never ended.
pub fn this(name: &str, output: &str, status: Option<i32>) -> Tally {
    let mut tally = Tally::default();
    let mut known = 0;
    for Counts { passed, failed, others } in output.lines().filter_map(counts) {
        known += passed + failed + others;
        tally.passed += passed;
        tally.failed += failed;
    }
    match status {
        None => tally += Tally::failure(format!("{name} did not end")),
        Some(0) if known == 0 => tally += Tally::failure(format!("{name} has no tests")),
        Some(status) if status != 0 && tally.failed == 0 => {
            tally += Tally::failure(format!("{name} ended with {status}, though no test failed"));
        }
        Some(_) => {}
    }
    if tally.failed > 0 {
        let accounts = accounts(output);
        tally.names = accounts.iter().flat_map(|account| names(account)).collect();
        let quote = if accounts.is_empty() {
            let lines: Vec<_> = output.lines().collect();
            lines[lines.len().saturating_sub(QUOTED)..].to_vec()
        } else {
            accounts.concat()
        };
        let left_out = quote.len().saturating_sub(QUOTED);
        let mut text = format!("{name}:\n{}", quote[..quote.len() - left_out].join("\n"));
        if left_out > 0 {
            text += &format!("\n({left_out} more lines of this in the log)");
        }
        tally.quotes.push(text);
    }
    tally
}

/// What the runners in this output report their failures: from a line `failures:` to the one with the result.
fn accounts(output: &str) -> Vec<Vec<&str>> {
    let mut accounts: Vec<Vec<&str>> = Vec::new();
    let mut within = false;
    for line in output.lines() {
        if line.contains("test result: ") {
            within = false;
        } else if line == "failures:" && !within {
            within = true;
            accounts.push(Vec::new());
        }
        if let (true, Some(account)) = (within, accounts.last_mut()) {
            account.push(line);
        }
    }
    accounts
}

/// The names at the end of such an account, indented below a second line `failures:`.
fn names(account: &[&str]) -> Vec<String> {
    let list = account.rsplit(|line| *line == "failures:").next().unwrap_or_default();
    list.iter().filter_map(|line| line.strip_prefix("    ")).map(str::to_owned).collect()
}

/// What a runner says of its tests.
struct Counts {
    passed: u64,
    failed: u64,
    /// Ignored, or filtered out.
    others: u64,
}

/// The counts in a line `test result: ok. 3 passed; 0 failed; …`.
fn counts(line: &str) -> Option<Counts> {
    // A test may have printed something without ending its line.
    let (_, rest) = line.split_once("test result: ")?;
    let (_, rest) = rest.split_once(". ")?;
    let count = |what: &str| -> Option<u64> {
        let part = rest.split(';').find_map(|part| part.trim().strip_suffix(what))?;
        part.trim().parse().ok()
    };
    let others = count("ignored").unwrap_or(0) + count("filtered out").unwrap_or(0);
    Some(Counts { passed: count("passed")?, failed: count("failed")?, others })
}

/// The line that ends a test run.
pub fn closing(total: &Tally) -> String {
    format!("{} passed, {} failed", total.passed, total.failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s";
    /// Of a target that forgot to say `harness = false`.
    const NONE: &str = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
    const FAILED: &str =
        "oops test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";

    fn targets(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn results_of_all_targets_are_summed() {
        let output = format!("{BEGIN}a\n{OK}\n{END}0 4\n{BEGIN}b\n{FAILED}\n{END}101 75\n");
        let tally = job(&output, &targets(&["a", "b"]));
        assert_eq!((tally.passed, tally.failed, &tally.reasons[..]), (4, 2, &[][..]));
        assert_eq!(tally.seconds, [("a".to_owned(), 4), ("b".to_owned(), 75)]);
        assert_eq!(closing(&tally), "4 passed, 2 failed");
    }

    #[test]
    fn a_target_without_a_result_is_a_failure() {
        for (output, reason) in [
            (String::new(), "did not run"),
            (format!("{BEGIN}a\n"), "did not run"),
            (format!("{BEGIN}a\nrunning 3 tests\n"), "did not end"),
            (format!("{BEGIN}a\n{OK}\n"), "did not end"),
            (format!("{BEGIN}a\nrunning 3 tests\n{END}0\n"), "has no tests"),
            (format!("{BEGIN}a\n{NONE}\n{END}0\n"), "has no tests"),
            (format!("{BEGIN}a\nSegmentation fault\n{END}139\n"), "ended with 139"),
            (format!("{BEGIN}a\n{OK}\n{END}1\n"), "ended with 1"),
        ] {
            let tally = job(&output, &targets(&["a"]));
            assert_eq!((tally.failed, tally.reasons.len()), (1, 1), "{output}");
            assert!(tally.reasons[0].contains(reason), "{:?}", tally.reasons);
        }
    }

    #[test]
    fn runners_within_one_output_are_all_counted() {
        let tally = this("unit", &format!("{OK}\n{OK}\n{OK}"), Some(0));
        assert_eq!(tally, Tally { passed: 9, ..Tally::default() });
    }

    #[test]
    fn what_failed_is_quoted_whichever_target_it_was_in() {
        let failing = "running 2 tests\ntest one ... FAILED\ntest two ... ok\n\nfailures:\n\n---- one ----\nfailures: 7\n  because: it rained\n\n\nfailures:\n    one\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored\n";
        let output =
            format!("{BEGIN}a\n{failing}{END}101\n{BEGIN}b\n{OK}\n{END}0\n{BEGIN}c\nkilled\n{END}137\n");
        let tally = job(&output, &targets(&["a", "b", "c"]));
        assert_eq!((tally.failed, &tally.names[..]), (2, &["one".to_owned()][..]));
        let [a, c] = &tally.quotes[..] else { panic!("{:?}", tally.quotes) };
        assert!(a.starts_with("a:\nfailures:") && a.contains("it rained") && !a.contains("test two"), "{a}");
        assert_eq!(c, "c:\nkilled");
    }

    #[test]
    fn a_long_account_is_cut_and_says_so() {
        let long = "line\n".repeat(QUOTED + 6);
        let output = format!("failures:\n{long}test result: FAILED. 1 passed; 1 failed; 0 ignored\n");
        let tally = this("a", &output, Some(101));
        assert!(tally.quotes[0].ends_with("line\n(7 more lines of this in the log)"), "{:?}", tally.quotes);
    }
}
