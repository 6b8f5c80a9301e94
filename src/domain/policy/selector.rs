//! What a policy selects by tags or labels.

use std::collections::BTreeMap;

use crate::api::{TagOperator, TagSelector};

use super::shown;

/// Whether a selector selects what has these tags or labels. An empty selector selects nothing.
pub(super) fn selects(selector: &TagSelector, tags: &BTreeMap<String, String>) -> bool {
    let labels = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    let mut any = false;
    for (key, value) in labels {
        any = true;
        if tags.get(key) != Some(value) {
            return false;
        }
    }
    for expression in expressions {
        any = true;
        let value = tags.get(&expression.key);
        let within = |value: &String| expression.values.iter().flatten().any(|entry| entry == value);
        let holds = match expression.operator {
            TagOperator::In => value.is_some_and(within),
            TagOperator::NotIn => !value.is_some_and(within),
            TagOperator::Exists => value.is_some(),
            TagOperator::DoesNotExist => value.is_none(),
        };
        if !holds {
            return false;
        }
    }
    any
}

/// A selector as a finding shows it.
pub(super) fn selector_text(selector: &TagSelector) -> String {
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.match_expressions.iter().flatten().map(|expression| {
        let values = expression.values.clone().unwrap_or_default().join(",");
        match expression.operator {
            TagOperator::In => format!("{} in ({values})", expression.key),
            TagOperator::NotIn => format!("{} not in ({values})", expression.key),
            TagOperator::Exists => expression.key.clone(),
            TagOperator::DoesNotExist => format!("no {}", expression.key),
        }
    });
    let all: Vec<String> = labels.chain(expressions).collect();
    shown(&all)
}
