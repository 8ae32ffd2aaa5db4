#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::{Field, Severity, eso, injector, vault_agent};

const INJECTOR: &str = include_str!("../../docs/migrate-from-vault-agent-injector.md");
const ESO: &str = include_str!("../../docs/migrate-from-external-secrets.md");

fn cell(field: &Field) -> String {
    let text = if field.text.is_empty() { "what is in it" } else { field.text };
    let text = text.replace('|', "\\|");
    match field.fate {
        None => text,
        Some(Severity::Changed) => format!("changed: {text}"),
        Some(Severity::Ignored) => format!("ignored: {text}"),
        Some(Severity::Refused) => format!("**refused**: {text}"),
    }
}

fn table(fields: &[Field]) -> String {
    let rows = fields.iter().map(|field| format!("| `{}` | {} |\n", field.name, cell(field)));
    format!("| field | becomes |\n|---|---|\n{}", rows.collect::<String>())
}

/// The pages say of every field what the program does with it, in the same words.
#[test]
fn the_pages_have_the_tables_of_the_program() {
    let rows = injector::ANNOTATIONS.iter().map(|row| {
        let (class, agent) = (cell(&row.class), cell(&row.agent));
        let agent = if agent == class { "the same".to_owned() } else { agent };
        format!("| `{}` | {class} | {agent} |\n", row.name)
    });
    let annotations =
        format!("| annotation | as a CSI volume | in the pod |\n|---|---|---|\n{}", rows.collect::<String>());
    for (page, name, table) in [
        (INJECTOR, "TABLE-INJECTOR", annotations),
        (INJECTOR, "TABLE-AGENT", table(vault_agent::FIELDS)),
        (ESO, "TABLE-ESO", table(eso::FIELDS)),
    ] {
        assert!(page.contains(&table), "{name} must be\n{table}END-{name}");
    }
}

#[test]
fn no_field_is_told_of_twice() {
    let annotations = injector::ANNOTATIONS.iter().map(|row| row.name).collect::<Vec<_>>();
    let names = |fields: &[Field]| fields.iter().map(|field| field.name).collect::<Vec<_>>();
    for mut all in [annotations, names(vault_agent::FIELDS), names(eso::FIELDS)] {
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
