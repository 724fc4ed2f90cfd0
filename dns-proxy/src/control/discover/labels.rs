//! Kubernetes label selectors: `app=web,tier in (front,back),!canary`. Pure.

use std::{collections::BTreeMap, fmt, str::FromStr};

use thiserror::Error;

/// What labels an object must have; all of it must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    /// Or absent.
    NotIn(Vec<String>),
}

/// Why a text is no selector. Always the operator's to mend.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}`: write requirements such as app=web, tier!=db, env in (a,b), env notin (c), key or !key, \
     with commas between them"
)]
pub struct LabelSelectorError(String);

impl LabelSelector {
    /// Whether these labels are meant.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match &requirement.test {
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            }
        })
    }
}

impl FromStr for LabelSelector {
    type Err = LabelSelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let requirements = split(text).map(requirement).collect::<Option<Vec<_>>>();
        let requirements = requirements.filter(|requirements| !requirements.is_empty());
        Ok(Self { requirements: requirements.ok_or_else(|| LabelSelectorError(text.to_owned()))? })
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Requirement { key, test }) in self.requirements.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match test {
                Test::Exists => write!(f, "{comma}{key}")?,
                Test::Absent => write!(f, "{comma}!{key}")?,
                Test::In(values) => match values.as_slice() {
                    [value] => write!(f, "{comma}{key}={value}")?,
                    _ => write!(f, "{comma}{key} in ({})", values.join(","))?,
                },
                Test::NotIn(values) => match values.as_slice() {
                    [value] => write!(f, "{comma}{key}!={value}")?,
                    _ => write!(f, "{comma}{key} notin ({})", values.join(","))?,
                },
            }
        }
        Ok(())
    }
}

/// The requirements: commas within parentheses part none.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    text.split(move |c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    })
}

fn requirement(text: &str) -> Option<Requirement> {
    let text = text.trim();
    let (key, test) = if let Some(key) = text.strip_prefix('!') {
        (key, Test::Absent)
    } else if let Some((key, value)) = text.split_once("!=") {
        (key, Test::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (key, Test::In(vec![value.trim().to_owned()]))
    } else if let Some(list) = text.strip_suffix(')') {
        let (head, list) = list.split_once('(')?;
        let (key, word) = head.trim().rsplit_once(char::is_whitespace)?;
        let values = list.split(',').map(|value| value.trim().to_owned()).collect();
        match word {
            "in" => (key, Test::In(values)),
            "notin" => (key, Test::NotIn(values)),
            _ => return None,
        }
    } else {
        (text, Test::Exists)
    };
    let values = match &test {
        Test::In(values) | Test::NotIn(values) => values.as_slice(),
        Test::Exists | Test::Absent => &[],
    };
    let key = key.trim();
    let is_sound = is_word(key, "-_./") && !key.is_empty();
    let are_sound = values.iter().all(|value| is_word(value, "-_."));
    (is_sound && are_sound).then(|| Requirement { key: key.to_owned(), test })
}

/// Letters, digits and what else a key or a value may have.
fn is_word(text: &str, more: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_hold_as_in_kubernetes() {
        let labels = [("app", "web"), ("tier", "front"), ("example.com/team", "a")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let cases = [
            ("app=web", true),
            ("app==web", true),
            ("app=db", false),
            ("app", true),
            ("!app", false),
            ("!canary", true),
            ("app!=db", true),
            ("canary!=yes", true),
            ("tier in (front, back)", true),
            ("tier in (back)", false),
            ("tier notin (back,db)", true),
            ("canary notin (yes)", true),
            ("canary in (yes)", false),
            ("app=web, tier in (front,back),!canary", true),
            ("app=web,tier=back", false),
            ("example.com/team=a", true),
            ("app=", false),
        ];
        for (text, expected) in cases {
            let selector: LabelSelector = text.parse().expect(text);
            assert_eq!(selector.matches(&labels), expected, "{text}");
            let again: LabelSelector = selector.to_string().parse().expect("as written");
            assert_eq!(again, selector, "{text}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for text in ["", "=web", "app=web,", "app is web", "a in b", "a in (b", "a b", "a=b c", "!"]
        {
            let error = text.parse::<LabelSelector>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("`{text}`: ")), "{error}");
        }
    }
}
