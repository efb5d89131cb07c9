//! `#[ktstr_test(…)]`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Attribute, Error, Expr, FnArg, ItemFn, Result, ReturnType, Type, ext::IdentExt, parse::Parser,
    spanned::Spanned,
};

use crate::attributes::Attributes;

const KEYS: &[&str] = &[
    "numa_nodes",
    "llcs",
    "cores",
    "threads",
    "memory_mb",
    "duration_s",
    "scheduler",
    "extra_sched_args",
    "not_stuck",
    "isolation",
    "max_gap_ms",
    "max_spread_pct",
    "max_imbalance_ratio",
    "max_local_dsq_depth",
    "fail_on_rq_clock_stuck",
    "sustained_samples",
    "min_llcs",
    "max_llcs",
    "min_cpus",
    "max_cpus",
    "min_numa_nodes",
    "max_numa_nodes",
    "requires_smt",
    "ignore",
];

const SIGNATURE: &str = "a ktstr test is `fn name(ctx: &Ctx) -> Result<AssertResult>`";

pub fn expand(attributes: TokenStream, function: TokenStream) -> Result<TokenStream> {
    let attributes =
        (|input: syn::parse::ParseStream<'_>| Attributes::parse_known(input, KEYS)).parse2(attributes)?;
    let function: ItemFn = syn::parse2(function)?;
    check_signature(&function)?;
    check_shape(&attributes)?;
    emit(&attributes, function)
}

fn check_signature(function: &ItemFn) -> Result<()> {
    let signature = &function.sig;
    let refuse = |span, why: &str| Err(Error::new(span, format!("{SIGNATURE}: {why}")));
    if let Some(asyncness) = &signature.asyncness {
        return refuse(asyncness.span(), "it cannot be async");
    }
    if let Some(unsafety) = &signature.unsafety {
        return refuse(unsafety.span(), "it cannot be unsafe");
    }
    if !signature.generics.params.is_empty() {
        return refuse(signature.generics.span(), "it cannot be generic");
    }
    let takes_reference = |argument: &FnArg| match argument {
        FnArg::Typed(argument) => matches!(&*argument.ty, Type::Reference(r) if r.mutability.is_none()),
        FnArg::Receiver(_) => false,
    };
    if signature.inputs.len() != 1 || !signature.inputs.iter().all(takes_reference) {
        return refuse(signature.ident.span(), "it takes one argument, `ctx: &Ctx`");
    }
    if matches!(signature.output, ReturnType::Default) {
        return refuse(signature.ident.span(), "it returns its result");
    }
    if let Some(test) = function.attrs.iter().find(|a| a.path().is_ident("test")) {
        return Err(Error::new(test.span(), "`#[ktstr_test]` makes the test itself; remove `#[test]`"));
    }
    if let Some(inverted) = function.attrs.iter().find(|a| a.path().is_ident("should_panic")) {
        return Err(Error::new(
            inverted.span(),
            "`#[should_panic]` would also accept a failure of the infrastructure; it is not supported",
        ));
    }
    Ok(())
}

/// What is wrong with the shape whatever the scheduler adds to it.
fn check_shape(attributes: &Attributes) -> Result<()> {
    if let (Some(llcs), Some(nodes)) =
        (attributes.positive_u32("llcs")?, attributes.positive_u32("numa_nodes")?)
        && !llcs.is_multiple_of(nodes)
    {
        let span = attributes.find("llcs").map_or_else(proc_macro2::Span::call_site, |a| a.key.span());
        let message = format!(
            "{llcs} LLCs cannot be divided evenly among {nodes} NUMA nodes; `llcs` counts the whole machine"
        );
        return Err(Error::new(span, message));
    }
    Ok(())
}

fn option<T: quote::ToTokens>(value: Option<T>) -> TokenStream {
    match value {
        Some(value) => quote!(::core::option::Option::Some(#value)),
        None => quote!(::core::option::Option::None),
    }
}

fn emit(attributes: &Attributes, mut function: ItemFn) -> Result<TokenStream> {
    let name = function.sig.ident.clone();
    let text = name.unraw().to_string();
    let [numa_nodes, llcs, cores, threads, memory_mb] = {
        let read = |key| attributes.positive_u32(key).map(option);
        [read("numa_nodes")?, read("llcs")?, read("cores")?, read("threads")?, read("memory_mb")?]
    };
    let duration_s = attributes
        .positive("duration_s")?
        .map_or_else(|| quote!(::ktstr::host::DEFAULT_DURATION_S), |seconds| quote!(#seconds));
    let scheduler = match attributes.value("scheduler")? {
        None => option::<TokenStream>(None),
        Some(Expr::Path(path)) => quote!(::core::option::Option::Some(&#path)),
        Some(other) => {
            let message = "`scheduler` must be the name of a scheduler declared with `declare_scheduler!`";
            return Err(Error::new(other.span(), message));
        }
    };
    let scheduler_args = attributes.texts("extra_sched_args")?;
    let assert = thresholds(attributes)?;
    let constraints = constraints(attributes)?;
    let ignore = attributes.flag("ignore")?.unwrap_or(false).then(|| quote!(#[ignore]));
    let Sorted { conditions, lints, outer } = sort(std::mem::take(&mut function.attrs));
    let body = format_ident!("__ktstr_body_{}", name);
    function.sig.ident = body.clone();
    function.vis = syn::Visibility::Inherited;
    let entry = format_ident!("__KTSTR_ENTRY_{}", text.to_uppercase());
    Ok(quote! {
        #(#conditions)*
        #(#lints)*
        #function

        #(#conditions)*
        #[::ktstr::__private::linkme::distributed_slice(::ktstr::host::KTSTR_TESTS)]
        #[linkme(crate = ::ktstr::__private::linkme)]
        #[doc(hidden)]
        static #entry: ::ktstr::host::KtstrTestEntry = ::ktstr::host::KtstrTestEntry {
            name: #text,
            module_path: ::core::module_path!(),
            package: ::core::env!("CARGO_PKG_NAME"),
            run: #body,
            shape: ::ktstr::host::Shape {
                numa_nodes: #numa_nodes,
                llcs: #llcs,
                cores: #cores,
                threads: #threads,
            },
            constraints: #constraints,
            memory_mb: #memory_mb,
            duration_s: #duration_s,
            scheduler: #scheduler,
            extra_sched_args: &[#(#scheduler_args),*],
            assert: #assert,
        };

        #(#conditions)*
        #(#outer)*
        #ignore
        #[test]
        fn #name() {
            ::ktstr::host::run(&#entry)
        }
    })
}

/// The function's other attributes by what they apply to.
#[derive(Default)]
struct Sorted {
    /// Conditions of existence: to everything that is emitted.
    conditions: Vec<Attribute>,
    /// Lint levels: to the body.
    lints: Vec<Attribute>,
    /// The rest: to the `#[test]`.
    outer: Vec<Attribute>,
}

fn sort(attributes: Vec<Attribute>) -> Sorted {
    let mut sorted = Sorted::default();
    for attribute in attributes {
        let is = |names: &[&str]| names.iter().any(|name| attribute.path().is_ident(name));
        if is(&["cfg", "cfg_attr"]) {
            sorted.conditions.push(attribute);
        } else if is(&["allow", "expect", "warn", "deny", "forbid"]) {
            sorted.lints.push(attribute);
        } else {
            sorted.outer.push(attribute);
        }
    }
    sorted
}

/// Which shapes a gauntlet runs the test on.
fn constraints(attributes: &Attributes) -> Result<TokenStream> {
    let mut fields = Vec::new();
    for what in ["llcs", "cpus", "numa_nodes"] {
        let [min, max] = ["min", "max"].map(|bound| format!("{bound}_{what}"));
        let (low, high) = (attributes.positive_u32(&min)?, attributes.positive_u32(&max)?);
        if let (Some(low), Some(high), Some(place)) = (low, high, attributes.find(&min))
            && low > high
        {
            let message = format!("`{min}` is {low} and `{max}` is {high}: no machine is within these");
            return Err(Error::new(place.key.span(), message));
        }
        fields.extend([(min, option(low)), (max, option(high))]);
    }
    fields.push(("requires_smt".into(), option(attributes.flag("requires_smt")?)));
    let fields = fields.iter().map(|(key, value)| {
        let key = format_ident!("{}", key);
        quote!(#key: #value)
    });
    Ok(quote!(::ktstr::host::Constraints { #(#fields),* }))
}

fn thresholds(attributes: &Attributes) -> Result<TokenStream> {
    let flags = ["not_stuck", "isolation", "fail_on_rq_clock_stuck"];
    let mut fields = Vec::new();
    for key in flags {
        fields.push((key, option(attributes.flag(key)?)));
    }
    for key in ["max_spread_pct", "max_imbalance_ratio"] {
        fields.push((key, option(attributes.number(key)?)));
    }
    for key in ["max_local_dsq_depth", "sustained_samples"] {
        fields.push((key, option(attributes.positive_u32(key)?)));
    }
    fields.push(("max_gap_ms", option(attributes.positive("max_gap_ms")?)));
    let fields = fields.iter().map(|(key, value)| {
        let key = format_ident!("{}", key);
        quote!(#key: #value)
    });
    Ok(quote!(::ktstr::prelude::Assert { #(#fields),* }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(attributes: TokenStream, function: TokenStream) -> String {
        expand(attributes, function).unwrap_err().to_string()
    }

    fn good() -> TokenStream {
        quote!(
            fn t(ctx: &Ctx) -> Result<AssertResult> {
                scenarios::steady(ctx)
            }
        )
    }

    #[test]
    fn everything_in_the_first_slice_is_accepted() {
        let attributes = quote!(
            llcs = 2,
            cores = 2,
            threads = 1,
            numa_nodes = 1,
            memory_mb = 512,
            duration_s = 3,
            scheduler = MY_SCHED,
            extra_sched_args = ["-v"],
            not_stuck,
            isolation = false,
            max_spread_pct = 12.5,
            max_gap_ms = 100,
            ignore,
        );
        let code = expand(attributes, good()).unwrap().to_string();
        assert!(code.contains("# [test] fn t ()"), "{code}");
        assert!(code.contains("# [ignore]"), "{code}");
        assert!(code.contains("scheduler : :: core :: option :: Option :: Some (& MY_SCHED)"), "{code}");
        assert!(code.contains("max_spread_pct : :: core :: option :: Option :: Some (12.5f64)"), "{code}");
    }

    #[test]
    fn conditions_apply_to_everything_and_lints_to_the_body() {
        let function = quote!(
            #[cfg(unix)]
            #[expect(dead_code)]
            #[doc = "about"]
            fn r#type(ctx: &Ctx) -> Result<AssertResult> {
                x
            }
        );
        let code = expand(quote!(), function).unwrap().to_string();
        assert_eq!(code.matches("# [cfg (unix)]").count(), 3, "{code}");
        assert_eq!(code.matches("# [expect (dead_code)]").count(), 1, "{code}");
        assert!(code.contains("name : \"type\""), "{code}");
    }

    #[test]
    fn bad_attributes_say_what_is_wrong() {
        for (attributes, message) in [
            (quote!(core = 2), "unknown key `core`, did you mean `cores`?"),
            (quote!(cores = 2, cores = 3), "`cores` is given twice"),
            (quote!(cores = 0), "`cores` must be at least 1"),
            (quote!(cores = -1), "`cores` cannot be negative"),
            (quote!(cores = "2"), "`cores` must be a whole number"),
            (quote!(cores = 99999999999), "`cores` must be below 2^32"),
            (quote!(cores), "`cores` needs a value: `cores = …`"),
            (quote!(duration_s = 1.5), "`duration_s` must be a whole number"),
            (quote!(not_stuck = 1), "`not_stuck` must be `true` or `false`"),
            (quote!(max_spread_pct = -2.0), "`max_spread_pct` must be a number that is not negative"),
            (
                quote!(scheduler = "scx"),
                "`scheduler` must be the name of a scheduler declared with `declare_scheduler!`",
            ),
            (
                quote!(max_llcs = 2, min_llcs = 4),
                "`min_llcs` is 4 and `max_llcs` is 2: no machine is within these",
            ),
            (quote!(min_cpu = 4), "unknown key `min_cpu`, did you mean `min_cpus`?"),
            (
                quote!(llcs = 3, numa_nodes = 2),
                "3 LLCs cannot be divided evenly among 2 NUMA nodes; `llcs` counts the whole machine",
            ),
        ] {
            assert_eq!(refusal(attributes, good()), message);
        }
    }

    #[test]
    fn other_signatures_are_refused() {
        for (function, why) in [
            (
                quote!(
                    fn t() -> Result<AssertResult> {
                        x
                    }
                ),
                "it takes one argument, `ctx: &Ctx`",
            ),
            (
                quote!(
                    fn t(ctx: Ctx) -> Result<AssertResult> {
                        x
                    }
                ),
                "it takes one argument, `ctx: &Ctx`",
            ),
            (
                quote!(
                    fn t(ctx: &mut Ctx) -> Result<AssertResult> {
                        x
                    }
                ),
                "it takes one argument, `ctx: &Ctx`",
            ),
            (
                quote!(
                    fn t(ctx: &Ctx) {}
                ),
                "it returns its result",
            ),
            (
                quote!(
                    async fn t(ctx: &Ctx) -> R {
                        x
                    }
                ),
                "it cannot be async",
            ),
            (
                quote!(
                    unsafe fn t(ctx: &Ctx) -> R {
                        x
                    }
                ),
                "it cannot be unsafe",
            ),
            (
                quote!(
                    fn t<T>(ctx: &Ctx) -> R {
                        x
                    }
                ),
                "it cannot be generic",
            ),
        ] {
            assert_eq!(refusal(quote!(), function), format!("{SIGNATURE}: {why}"));
        }
        assert!(
            refusal(
                quote!(),
                quote!(
                    #[test]
                    fn t(c: &Ctx) -> R {
                        x
                    }
                )
            )
            .contains("remove `#[test]`")
        );
        assert!(
            refusal(
                quote!(),
                quote!(
                    #[should_panic]
                    fn t(c: &Ctx) -> R {
                        x
                    }
                )
            )
            .contains("not supported")
        );
    }
}
