//! Reading `key = value` lists: unknown keys are refused with the nearest known one, duplicates and
//! values of the wrong kind at their own place.

use std::fmt::Display;

use proc_macro2::Span;
use syn::{
    Error, Expr, ExprLit, ExprUnary, Ident, Lit, LitStr, Result, Token, UnOp,
    parse::{Parse, ParseStream},
    punctuated::Punctuated,
    spanned::Spanned,
};

/// One `key = value`, or a bare `key`, which means `true`.
pub struct Attribute {
    pub key: Ident,
    pub value: Option<Expr>,
}

impl Parse for Attribute {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let key: Ident = input.parse()?;
        let value = if input.peek(Token![=]) {
            input.parse::<Token![=]>()?;
            Some(input.parse()?)
        } else {
            None
        };
        Ok(Self { key, value })
    }
}

/// The list as written, checked for unknown and repeated keys.
pub struct Attributes(Vec<Attribute>);

impl Attributes {
    pub fn parse_known(input: ParseStream<'_>, known: &[&str]) -> Result<Self> {
        let list = Punctuated::<Attribute, Token![,]>::parse_terminated(input)?;
        let mut seen: Vec<String> = Vec::new();
        for Attribute { key, .. } in &list {
            let name = key.to_string();
            if !known.contains(&name.as_str()) {
                return Err(Error::new(key.span(), unknown(&name, known)));
            }
            if seen.contains(&name) {
                return Err(Error::new(key.span(), format!("`{name}` is given twice")));
            }
            seen.push(name);
        }
        Ok(Self(list.into_iter().collect()))
    }

    pub fn find(&self, key: &str) -> Option<&Attribute> {
        self.0.iter().find(|attribute| attribute.key == key)
    }

    /// The value of `key`, if the key is there.
    pub fn value(&self, key: &str) -> Result<Option<&Expr>> {
        let Some(attribute) = self.find(key) else { return Ok(None) };
        match &attribute.value {
            Some(value) => Ok(Some(value)),
            None => Err(Error::new(attribute.key.span(), format!("`{key}` needs a value: `{key} = …`"))),
        }
    }

    /// A whole number from 0 on.
    pub fn natural(&self, key: &str) -> Result<Option<u64>> {
        self.value(key)?.map(|value| whole_number(value, key)).transpose()
    }

    /// A whole number from 1 on.
    pub fn positive(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        match whole_number(value, key)? {
            0 => Err(Error::new(value.span(), format!("`{key}` must be at least 1"))),
            number => Ok(Some(number)),
        }
    }

    /// As [`Self::positive`], within 32 bits.
    pub fn positive_u32(&self, key: &str) -> Result<Option<u32>> {
        self.positive(key)?.map(|number| self.within_u32(key, number)).transpose()
    }

    /// As [`Self::natural`], within 32 bits.
    pub fn natural_u32(&self, key: &str) -> Result<Option<u32>> {
        self.natural(key)?.map(|number| self.within_u32(key, number)).transpose()
    }

    fn within_u32(&self, key: &str, number: u64) -> Result<u32> {
        let span = self.find(key).and_then(|a| a.value.as_ref()).map_or(Span::call_site(), Spanned::span);
        u32::try_from(number).map_err(|_| Error::new(span, format!("`{key}` must be below 2^32")))
    }

    /// A number that is not negative, whole or not.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        let parsed = match value {
            Expr::Lit(ExprLit { lit: Lit::Float(number), .. }) => number.base10_parse().ok(),
            Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) => number.base10_parse().ok(),
            _ => None,
        };
        match parsed.filter(|number: &f64| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(expected(value.span(), key, "a number that is not negative")),
        }
    }

    /// A number from 0 to 1.
    pub fn share(&self, key: &str) -> Result<Option<f64>> {
        self.number_to(key, 1.0, "a number from 0 to 1")
    }

    /// A number from 0 to 100.
    pub fn percent(&self, key: &str) -> Result<Option<f64>> {
        self.number_to(key, 100.0, "a number of percent, from 0 to 100")
    }

    fn number_to(&self, key: &str, most: f64, what: &str) -> Result<Option<f64>> {
        let Some(number) = self.number(key)? else { return Ok(None) };
        if number <= most {
            return Ok(Some(number));
        }
        let span = self.find(key).and_then(|a| a.value.as_ref()).map_or(Span::call_site(), Spanned::span);
        Err(expected(span, key, what))
    }

    /// A list of names of statics or constants.
    pub fn paths(&self, key: &str, what: &str) -> Result<Vec<syn::ExprPath>> {
        let refused = |span| expected(span, key, format!("a list of {what}, `[A, B]`"));
        match self.value(key)? {
            None => Ok(Vec::new()),
            Some(Expr::Array(list)) => list
                .elems
                .iter()
                .map(|item| match item {
                    Expr::Path(path) => Ok(path.clone()),
                    other => Err(refused(other.span())),
                })
                .collect(),
            Some(other) => Err(refused(other.span())),
        }
    }

    /// `true` or `false`; the bare key is `true`.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.find(key) {
            None => Ok(None),
            Some(Attribute { value: None, .. }) => Ok(Some(true)),
            Some(Attribute { value: Some(Expr::Lit(ExprLit { lit: Lit::Bool(flag), .. })), .. }) => {
                Ok(Some(flag.value))
            }
            Some(Attribute { value: Some(other), .. }) => {
                Err(expected(other.span(), key, "`true` or `false`"))
            }
        }
    }

    /// A string literal that is not empty.
    pub fn text(&self, key: &str) -> Result<Option<String>> {
        self.value(key)?.map(|value| text(value, key)).transpose()
    }

    /// A list of string literals.
    pub fn texts(&self, key: &str) -> Result<Vec<String>> {
        match self.value(key)? {
            None => Ok(Vec::new()),
            Some(Expr::Array(list)) => list.elems.iter().map(|value| text(value, key)).collect(),
            Some(other) => Err(expected(other.span(), key, "a list of strings, `[\"…\", \"…\"]`")),
        }
    }

    /// The literals of a list that [`Self::texts`] has accepted.
    pub fn text_literals(&self, key: &str) -> Result<Vec<&LitStr>> {
        let Some(Expr::Array(list)) = self.value(key)? else { return Ok(Vec::new()) };
        let literal = |item| match item {
            &Expr::Lit(ExprLit { lit: Lit::Str(ref text), .. }) => Some(text),
            _ => None,
        };
        Ok(list.elems.iter().filter_map(literal).collect())
    }
}

pub fn whole_number(value: &Expr, key: &str) -> Result<u64> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) if matches!(number.suffix(), "" | "u32" | "u64") => {
            number.base10_parse()
        }
        Expr::Unary(ExprUnary { op: UnOp::Neg(_), .. }) => {
            Err(Error::new(value.span(), format!("`{key}` cannot be negative")))
        }
        _ => Err(expected(value.span(), key, "a whole number")),
    }
}

fn text(value: &Expr, key: &str) -> Result<String> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) if !text.value().is_empty() => Ok(text.value()),
        _ => Err(expected(value.span(), key, "a string that is not empty")),
    }
}

pub fn expected(span: Span, key: &str, what: impl Display) -> Error {
    Error::new(span, format!("`{key}` must be {what}"))
}

fn unknown(name: &str, known: &[&str]) -> String {
    format!("unknown key `{name}`{}", near(name, known))
}

/// What follows the name of something that is not there.
pub fn near(name: &str, known: &[&str]) -> String {
    let near = known.iter().map(|candidate| (distance(name, candidate), candidate)).min();
    match near {
        Some((steps, candidate)) if steps <= 1 + candidate.len() / 3 => {
            format!(", did you mean `{candidate}`?")
        }
        _ => format!("; known are: {}", known.join(", ")),
    }
}

/// Edits that turn one word into the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_recognised_and_far_ones_get_the_list() {
        let known = ["llcs", "cores", "threads", "duration_s"];
        assert_eq!(unknown("core", &known), "unknown key `core`, did you mean `cores`?");
        assert_eq!(unknown("duration", &known), "unknown key `duration`, did you mean `duration_s`?");
        assert_eq!(
            unknown("frobnicate", &known),
            "unknown key `frobnicate`; known are: llcs, cores, threads, duration_s"
        );
    }
}
