//! `#[derive(Payload)]`: a constant that describes a program.
//!
//! ```text
//! #[derive(Payload)]
//! #[payload(binary = "fio", name = "fio", output = Json)]
//! #[default_args("--output-format=json", "/include-files/job.fio")]
//! #[default_check(min("jobs.0.read.iops", 100.0))]
//! #[metric(name = "jobs.0.read.iops", polarity = HigherBetter, unit = "1/s")]
//! #[include_files("job.fio")]
//! struct FioPayload;              // makes: pub const FIO: Payload
//! ```

use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote};
use syn::{
    Attribute, Data, DeriveInput, Error, Expr, Fields, LitStr, Result, Token, punctuated::Punctuated,
    spanned::Spanned,
};

use crate::attributes::Attributes;

/// Each check and how it is written.
const CHECKS: &[(&str, &str)] = &[
    ("min", "min(\"iops\", 100.0)"),
    ("max", "max(\"latency_us\", 50.0)"),
    ("range", "range(\"load\", 0.5, 1.5)"),
    ("exists", "exists(\"iops\")"),
    ("exit_code_eq", "exit_code_eq(0)"),
];
const OUTPUTS: &[&str] = &["Json", "ExitCode"];
const POLARITIES: &[&str] = &["HigherBetter", "LowerBetter", "TargetValue", "Unknown", "Informational"];

pub fn expand(input: TokenStream) -> Result<TokenStream> {
    let input: DeriveInput = syn::parse2(input)?;
    if !matches!(&input.data, Data::Struct(data) if matches!(data.fields, Fields::Unit)) {
        let message = "a payload is declared with a struct without fields, `struct FioPayload;`";
        return Err(Error::new(input.ident.span(), message));
    }
    let constant = constant_name(&input.ident.to_string());
    let Some(main) = input.attrs.iter().find(|a| a.path().is_ident("payload")) else {
        let message = format!("payload `{}` needs `#[payload(binary = \"…\")]`", input.ident);
        return Err(Error::new(input.ident.span(), message));
    };
    let main = main.parse_args_with(|input: syn::parse::ParseStream<'_>| {
        Attributes::parse_known(input, &["binary", "name", "output"])
    })?;
    let Some(binary) = main.text("binary")? else {
        let message = format!("payload `{}` needs `#[payload(binary = \"…\")]`", input.ident);
        return Err(Error::new(input.ident.span(), message));
    };
    let base = binary.rsplit('/').next().unwrap_or(&binary).to_owned();
    let name = main.text("name")?.unwrap_or(base);
    let output = word(main.value("output")?, "output", OUTPUTS)?.unwrap_or_else(|| format_ident!("ExitCode"));
    let mut listed = Listed::default();
    for attribute in &input.attrs {
        listed.read(attribute)?;
    }
    listed.can_be_read_from(&output.to_string())?;
    let Listed { args, checks, metrics, files, .. } = listed;
    let ident = &input.ident;
    let (visibility, constant) = (&input.vis, format_ident!("{}", constant));
    let doc = format!("The program `{name}`.");
    Ok(quote! {
        #[doc = #doc]
        #visibility const #constant: ::ktstr::prelude::Payload =
            ::ktstr::prelude::Payload::binary(#name, #binary)
                .with_output(::ktstr::prelude::PayloadOutput::#output)
                .with_default_args(&[#(#args),*])
                .with_checks(&[#(::ktstr::prelude::MetricCheck::#checks),*])
                .with_metrics(&[#(#metrics),*])
                .with_include_files(&[#(#files),*]);

        // The struct carries the attributes and nothing else; this is its one use.
        const _: #ident = #ident;
    })
}

/// `FioPayload` → `FIO`, `NetPerf` → `NET_PERF`.
fn constant_name(name: &str) -> String {
    let stem = name.strip_suffix("Payload").filter(|stem| !stem.is_empty()).unwrap_or(name);
    let mut constant = String::new();
    let mut before: Option<char> = None;
    for c in stem.chars() {
        let begins = c.is_uppercase() && before.is_some_and(|b| b.is_lowercase() || b.is_ascii_digit());
        if begins {
            constant.push('_');
        }
        constant.extend(c.to_uppercase());
        before = Some(c);
    }
    constant
}

/// The attributes that are lists or may be repeated.
#[derive(Default)]
struct Listed {
    args: Vec<LitStr>,
    checks: Vec<Expr>,
    metrics: Vec<TokenStream>,
    metric_names: Vec<String>,
    files: Vec<LitStr>,
}

impl Listed {
    fn read(&mut self, attribute: &Attribute) -> Result<()> {
        let texts = || attribute.parse_args_with(Punctuated::<LitStr, Token![,]>::parse_terminated);
        if attribute.path().is_ident("default_args") {
            self.args.extend(texts()?);
        } else if attribute.path().is_ident("include_files") {
            self.files.extend(texts()?);
        } else if attribute.path().is_ident("default_check") {
            let check: Expr = attribute.parse_args()?;
            check_form(&check)?;
            self.checks.push(check);
        } else if attribute.path().is_ident("metric") {
            let fields = attribute.parse_args_with(|input: syn::parse::ParseStream<'_>| {
                Attributes::parse_known(input, &["name", "polarity", "unit"])
            })?;
            self.metric(attribute, &fields)?;
        }
        Ok(())
    }

    fn metric(&mut self, attribute: &Attribute, fields: &Attributes) -> Result<()> {
        let Some(name) = fields.text("name")? else {
            return Err(Error::new(attribute.span(), "a metric needs `name = \"…\"`"));
        };
        if self.metric_names.contains(&name) {
            return Err(Error::new(attribute.span(), format!("metric `{name}` is given twice")));
        }
        let unit = fields.text("unit")?.unwrap_or_default();
        let polarity = polarity(fields.value("polarity")?)?;
        self.metrics.push(quote!(::ktstr::prelude::MetricDef {
            name: #name,
            polarity: ::ktstr::prelude::Polarity::#polarity,
            unit: #unit,
        }));
        self.metric_names.push(name);
        Ok(())
    }

    /// What is judged by a number needs an output that has numbers.
    fn can_be_read_from(&self, output: &str) -> Result<()> {
        let numberless = self.checks.iter().filter_map(|check| match check {
            Expr::Call(call) if output == "ExitCode" => Some((call, call.func.to_token_stream().to_string())),
            _ => None,
        });
        let mut numberless = numberless.filter(|(_, name)| name != "exit_code_eq");
        let Some((call, name)) = numberless.next() else { return Ok(()) };
        let message = format!(
            "`{name}` judges a number of the output, and `output = ExitCode`, the default, reads none: say \
             `output = Json`"
        );
        Err(Error::new(call.func.span(), message))
    }
}

/// A check is a call of one of a few, with as many arguments as that takes.
fn check_form(check: &Expr) -> Result<()> {
    let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
    let (called, given) = match check {
        Expr::Call(call) => (&*call.func, call.args.len()),
        other => (other, 0),
    };
    let Some(word) = word(Some(called), "default_check", &names)? else { return Ok(()) };
    let form = CHECKS.iter().find(|(name, _)| word == name).map_or("", |(_, form)| form);
    if given == form.split(',').count() {
        return Ok(());
    }
    Err(Error::new(check.span(), format!("`{word}` is written with its arguments, as in `{form}`")))
}

fn polarity(value: Option<&Expr>) -> Result<TokenStream> {
    const FORM: &str = "`TargetValue` is written with the value that is best, as in `TargetValue(3.0)`";
    let Some(value) = value else { return Ok(quote!(Unknown)) };
    let (named, best) = match value {
        Expr::Call(call) => (&*call.func, Some(&call.args)),
        other => (other, None),
    };
    let Some(word) = word(Some(named), "polarity", POLARITIES)? else { return Ok(quote!(Unknown)) };
    match (word == "TargetValue", best) {
        (true, Some(best)) if best.len() == 1 => Ok(quote!(#word(#best))),
        (true, _) => Err(Error::new(value.span(), FORM)),
        (false, None) => Ok(quote!(#word)),
        (false, Some(_)) => {
            let message = format!("`{word}` takes no value; the one that does is `TargetValue(3.0)`");
            Err(Error::new(value.span(), message))
        }
    }
}

/// One of a few words.
fn word(value: Option<&Expr>, key: &str, known: &[&str]) -> Result<Option<syn::Ident>> {
    let Some(value) = value else { return Ok(None) };
    if let Expr::Path(path) = value
        && let Some(ident) = path.path.get_ident()
        && known.contains(&ident.to_string().as_str())
    {
        return Ok(Some(ident.clone()));
    }
    Err(Error::new(value.span(), format!("`{key}` must be one of: {}", known.join(", "))))
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    #[test]
    fn constants_are_named_after_the_struct() {
        for (name, constant) in [
            ("FioPayload", "FIO"),
            ("NetPerf", "NET_PERF"),
            ("Payload", "PAYLOAD"),
            ("Stress2Ng", "STRESS2_NG"),
        ] {
            assert_eq!(constant_name(name), constant);
        }
    }

    #[test]
    fn everything_documented_is_accepted() {
        let code = expand(quote! {
            #[payload(binary = "/opt/fio", output = Json)]
            #[default_args("--output-format=json", "job.fio")]
            #[default_check(exit_code_eq(0))]
            #[default_check(min("iops", 100.0))]
            #[metric(name = "iops", polarity = HigherBetter, unit = "1/s")]
            #[metric(name = "lat", polarity = TargetValue(3.0))]
            #[include_files("job.fio")]
            pub struct FioPayload;
        })
        .unwrap()
        .to_string();
        assert!(code.contains("pub const FIO : :: ktstr :: prelude :: Payload"), "{code}");
        assert!(code.contains("binary (\"fio\" , \"/opt/fio\")"), "{code}");
        assert!(code.contains("MetricCheck :: min (\"iops\" , 100.0)"), "{code}");
        assert!(code.contains("Polarity :: TargetValue (3.0)"), "{code}");
    }

    #[test]
    fn bad_declarations_say_what_is_wrong_and_where() {
        for (input, message, place) in [
            (
                "struct P { a: u32 }",
                "a payload is declared with a struct without fields, `struct FioPayload;`",
                "P",
            ),
            ("struct P;", "payload `P` needs `#[payload(binary = \"…\")]`", "P"),
            ("#[payload(name = \"x\")] struct P;", "payload `P` needs `#[payload(binary = \"…\")]`", "P"),
            ("#[payload(binry = \"x\")] struct P;", "unknown key `binry`, did you mean `binary`?", "binry"),
            (
                "#[payload(binary = \"x\", output = Xml)] struct P;",
                "`output` must be one of: Json, ExitCode",
                "Xml",
            ),
            (
                "#[payload(binary = \"x\")] #[default_check(least(\"a\", 1))] struct P;",
                "`default_check` must be one of: min, max, range, exists, exit_code_eq",
                "least",
            ),
            (
                "#[payload(binary = \"x\")] #[metric(name = \"a\")] #[metric(name = \"a\")] struct P;",
                "metric `a` is given twice",
                "#",
            ),
            (
                "#[payload(binary = \"x\")] #[metric(unit = \"s\")] struct P;",
                "a metric needs `name = \"…\"`",
                "#",
            ),
            (
                "#[payload(binary = \"x\")] #[metric(name = \"a\", polarity = Better)] struct P;",
                "`polarity` must be one of: HigherBetter, LowerBetter, TargetValue, Unknown, Informational",
                "Better",
            ),
            (
                "#[payload(binary = \"x\")] #[metric(name = \"a\", polarity = TargetValue)] struct P;",
                "`TargetValue` is written with the value that is best, as in `TargetValue(3.0)`",
                "TargetValue",
            ),
            (
                "#[payload(binary = \"x\")] #[metric(name = \"a\", polarity = TargetValue(1.0, 2.0))] struct P;",
                "`TargetValue` is written with the value that is best, as in `TargetValue(3.0)`",
                "TargetValue(1.0, 2.0)",
            ),
            (
                "#[payload(binary = \"x\")] #[metric(name = \"a\", polarity = LowerBetter(1.0))] struct P;",
                "`LowerBetter` takes no value; the one that does is `TargetValue(3.0)`",
                "LowerBetter(1.0)",
            ),
            (
                "#[payload(binary = \"x\", output = Json)] #[default_check(exists)] struct P;",
                "`exists` is written with its arguments, as in `exists(\"iops\")`",
                "exists",
            ),
            (
                "#[payload(binary = \"x\", output = Json)] #[default_check(range(\"a\", 1.0))] struct P;",
                "`range` is written with its arguments, as in `range(\"load\", 0.5, 1.5)`",
                "range(\"a\", 1.0)",
            ),
            (
                "#[payload(binary = \"x\")] #[default_check(exit_code_eq(3))] #[default_check(min(\"a\", 1.0))] \
                 struct P;",
                "`min` judges a number of the output, and `output = ExitCode`, the default, reads none: say \
                 `output = Json`",
                "min",
            ),
        ] {
            let error = expand(TokenStream::from_str(input).unwrap()).unwrap_err();
            assert_eq!(error.to_string(), message, "{input}");
            let pointed = error.span().source_text().unwrap_or_default();
            assert!(pointed.starts_with(place), "{input}: points at `{pointed}`, not `{place}`");
        }
    }
}
