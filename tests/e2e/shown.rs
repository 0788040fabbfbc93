//! What the README says is shown by a test is: every test that its table names exists, and every group has one.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, ensure};

const HEADING: &str = "## What is required, and what shows it";

const GROUPS: [&str; 24] = [
    "Control plane",
    "Workflows",
    "Sequencing",
    "Rollout strategies",
    "Scheduling",
    "Windows",
    "Approvals",
    "Targeting",
    "Health gates",
    "Rollback",
    "Executors",
    "Compatibility",
    "Repository",
    "REST",
    "WebSocket",
    "Data model",
    "Audit",
    "Compliance",
    "Scale",
    "Latency",
    "HA",
    "Dashboard",
    "Observability, metric names, trace spans",
    "Deployment models",
];

/// A table that lies is worse than none.
#[test]
fn every_test_that_the_readme_names_exists() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the tests lie in the project")?;
    let readme = fs::read_to_string(root.join("README.md"))?;
    let (_, section) = readme.split_once(HEADING).context("the README has the table")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    let mut groups = BTreeSet::new();
    for row in rows.skip(1) {
        let cells: Vec<_> = row
            .split(" |")
            .map(|cell| cell.trim_start_matches('|').trim())
            .collect();
        let [group, shown, ..] = cells[..] else {
            anyhow::bail!("{row} is no row");
        };
        let named = check(root, shown).with_context(|| format!("the row {group}"))?;
        ensure!(named > 0, "{group} is shown by nothing");
        ensure!(groups.insert(group), "{group} stands there twice");
    }
    ensure!(groups == BTreeSet::from(GROUPS), "{groups:?}");
    Ok(())
}

/// How many tests a text names, each after its file; all of them exist.
pub(crate) fn check(root: &Path, cell: &str) -> Result<usize> {
    let (mut file, mut count) = (None, 0);
    for name in cell.split('`').skip(1).step_by(2) {
        let is_function = name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if name.ends_with(".rs") {
            let text = fs::read_to_string(root.join(name)).with_context(|| name.to_owned())?;
            file = Some((name, text));
        } else if is_function {
            let (file, text) = file.as_ref().context("a file comes before its tests")?;
            ensure!(is_test(text, name), "{file} has no test {name}");
            count += 1;
        }
    }
    Ok(count)
}

/// Whether there is such a function, and something calls it a test.
fn is_test(text: &str, name: &str) -> bool {
    let Some(at) = text.find(&format!("fn {name}(")) else {
        return false;
    };
    let before = text[..at].trim_end_matches(|c: char| c != '\n').trim_end();
    // What stands for one of two databases is called one by a macro that names it.
    let by_macro = text.contains("on_both_databases!") && text.matches(name).count() > 1;
    let attributes = before
        .lines()
        .rev()
        .map(str::trim)
        .take_while(|line| line.starts_with(['#', '/', ')']));
    by_macro || attributes.into_iter().any(|line| line.contains("test]"))
}

#[test]
fn a_name_that_no_test_has_is_noticed() {
    let text = "#[tokio::test]\nasync fn one() {}\n\n#[test]\n#[expect(x)]\nfn two() {}\n\nfn helper() {}\n";
    assert!(is_test(text, "one") && is_test(text, "two"));
    assert!(!is_test(text, "three") && !is_test(text, "helper"));
}
