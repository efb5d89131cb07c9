//! `#[ktstr_test(…)]`: reading, checking and emitting. Attributes that exclude or need each other are
//! in `checks`, the machine's shape in `shape`.

mod checks;
mod shape;
#[cfg(test)]
mod ui;

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::{
    Attribute, Error, Expr, FnArg, ItemFn, Result, ReturnType, Type, ext::IdentExt, parse::Parser,
    spanned::Spanned,
};

use crate::attributes::Attributes;

const SHAPE: &[&str] = &["numa_nodes", "llcs", "cores", "threads"];
const SLOTS: &[&str] = &[
    "scheduler",
    "payload",
    "workloads",
    "extra_sched_args",
    "config",
    "staged_schedulers",
    "extra_include_files",
    "disk",
    "networks",
    "bpf_map_write",
    "watch_bpf_maps",
];
const FLAG_THRESHOLDS: &[&str] = &["not_stuck", "isolation", "fail_on_rq_clock_stuck"];
const PERCENT_THRESHOLDS: &[&str] = &["max_spread_pct"];
const NUMBER_THRESHOLDS: &[&str] = &[
    "max_imbalance_ratio",
    "max_throughput_cv",
    "min_work_rate",
    "min_iteration_rate",
    "max_migration_ratio",
    "max_wake_latency_cv",
    "max_fallback_rate",
    "max_keep_last_rate",
];
const SHARE_THRESHOLDS: &[&str] =
    &["min_page_locality", "max_cross_node_migration_ratio", "max_slow_tier_ratio"];
const U32_THRESHOLDS: &[&str] = &["max_local_dsq_depth", "sustained_samples"];
const U64_THRESHOLDS: &[&str] = &["max_gap_ms", "balancing_ms", "max_p99_wake_latency_ns"];
/// Limits of which 0 is one that can be kept.
const FROM_ZERO: &[&str] = &["max_local_dsq_depth", "balancing_ms"];
const LIMITS: &[(&str, &str)] =
    &[("min_llcs", "max_llcs"), ("min_cpus", "max_cpus"), ("min_numa_nodes", "max_numa_nodes")];
const REST: &[&str] = &[
    "absent_llcs",
    "memory_mb",
    "memory_mib",
    "duration_s",
    "workers_per_cgroup",
    "requires_smt",
    "expect_err",
    "expect_scx_bpf_error_contains",
    "expect_scx_bpf_error_matches",
    "survives_storm",
    "auto_repro",
    "expect_auto_repro",
    "allow_inconclusive",
    "performance_mode",
    "no_perf_mode",
    "kaslr",
    "host_only",
    "post_vm",
    "post_vm_unconditional",
    "workload_root_cgroup",
    "seeds",
    "num_snapshots",
    "watchdog_timeout_s",
    "cpu_budget",
    "cleanup_budget_ms",
    "ignore",
];

fn keys() -> Vec<&'static str> {
    let lists = [
        SHAPE,
        SLOTS,
        FLAG_THRESHOLDS,
        PERCENT_THRESHOLDS,
        NUMBER_THRESHOLDS,
        SHARE_THRESHOLDS,
        U32_THRESHOLDS,
        U64_THRESHOLDS,
        REST,
    ];
    let mut keys: Vec<_> = lists.concat();
    keys.extend(LIMITS.iter().flat_map(|(min, max)| [*min, *max]));
    keys
}

const SIGNATURE: &str = "a ktstr test is `fn name(ctx: &Ctx) -> Result<AssertResult>`";

pub fn expand(attributes: TokenStream, function: TokenStream) -> Result<TokenStream> {
    let attributes =
        (|input: syn::parse::ParseStream<'_>| Attributes::parse_known(input, &keys())).parse2(attributes)?;
    let function: ItemFn = syn::parse2(function)?;
    check_signature(&function)?;
    checks::contradictions(&attributes)?;
    shape::check(&attributes)?;
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

fn option<T: quote::ToTokens>(value: Option<T>) -> TokenStream {
    match value {
        Some(value) => quote!(::core::option::Option::Some(#value)),
        None => quote!(::core::option::Option::None),
    }
}

fn emit(attributes: &Attributes, mut function: ItemFn) -> Result<TokenStream> {
    let name = function.sig.ident.clone();
    let text = name.unraw().to_string();
    let Sorted { conditions, lints, outer } = sort(std::mem::take(&mut function.attrs));
    // The harness's own attribute means the same, and cells must know it, too.
    let said_outside = outer.iter().any(|attribute| attribute.path().is_ident("ignore"));
    let ignored = said_outside || attributes.flag("ignore")?.unwrap_or(text.starts_with("demo_"));
    let ignore = (ignored && !said_outside).then(|| quote!(#[ignore]));
    let body = format_ident!("__ktstr_body_{}", name);
    function.sig.ident = body.clone();
    function.vis = syn::Visibility::Inherited;
    let entry = format_ident!("__KTSTR_ENTRY_{}", text.to_uppercase());
    let fields = fields(attributes)?;
    let features = crate::features::words();
    let gate = gate(attributes)?;
    let devices = device_gate(attributes)?.map(|gate| quote!(#(#conditions)* #gate));
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
            features: #features,
            run: #body,
            ignored: #ignored,
            #fields
            ..::ktstr::host::KtstrTestEntry::DEFAULT
        };

        #(#conditions)*
        #gate

        #devices

        #(#conditions)*
        #(#outer)*
        #ignore
        #[test]
        fn #name() {
            ::ktstr::host::run(&#entry)
        }
    })
}

/// The entry's fields that the attributes say, `field: value,` each.
fn fields(attributes: &Attributes) -> Result<TokenStream> {
    let mut fields = TokenStream::new();
    let mut add = |name: &str, value: TokenStream| {
        let name = format_ident!("{}", name);
        fields.extend(quote!(#name: #value,));
    };
    let [numa_nodes, llcs, cores, threads] = {
        let read = |key| attributes.positive_u32(key).map(option);
        [read("numa_nodes")?, read("llcs")?, read("cores")?, read("threads")?]
    };
    add(
        "shape",
        quote!(::ktstr::host::Shape {
            numa_nodes: #numa_nodes,
            llcs: #llcs,
            cores: #cores,
            threads: #threads,
        }),
    );
    let memory = attributes.positive_u32("memory_mb")?.or(attributes.positive_u32("memory_mib")?);
    add("memory_mb", option(memory));
    if let Some(llcs) = attributes.positive_u32("absent_llcs")? {
        add("absent_llcs", quote!(#llcs));
    }
    if let Some(seconds) = attributes.positive("duration_s")? {
        add("duration_s", quote!(#seconds));
    }
    add("workers_per_cgroup", option(attributes.positive_u32("workers_per_cgroup")?));
    add("scheduler", reference(attributes, "scheduler", "a scheduler declared with `declare_scheduler!`")?);
    add("payload", reference(attributes, "payload", "a payload made by `#[derive(Payload)]`")?);
    let workloads = attributes.paths("workloads", "payloads")?;
    add("workloads", quote!(&[#(&#workloads),*]));
    let staged = attributes.paths("staged_schedulers", "schedulers")?;
    add("staged_schedulers", quote!(&[#(&#staged),*]));
    let args = attributes.texts("extra_sched_args")?;
    add("extra_sched_args", quote!(&[#(#args),*]));
    let files = attributes.texts("extra_include_files")?;
    add("extra_include_files", quote!(&[#(#files),*]));
    add("config", option(attributes.value("config")?));
    add("assert", thresholds(attributes)?);
    add("constraints", constraints(attributes)?);
    add("expect", expectation(attributes)?);
    for flag in ["allow_inconclusive", "performance_mode", "no_perf_mode", "host_only"] {
        let value = attributes.flag(flag)?.unwrap_or(false);
        add(flag, quote!(#value));
    }
    for flag in ["kaslr", "auto_repro"] {
        let value = attributes.flag(flag)?.unwrap_or(true);
        add(flag, quote!(#value));
    }
    for function in ["post_vm", "post_vm_unconditional"] {
        let value = match attributes.value(function)? {
            None => option::<TokenStream>(None),
            Some(Expr::Path(path)) => quote!(::core::option::Option::Some(#path)),
            Some(other) => {
                let message = format!("`{function}` must be the name of a `fn(&VmResult) -> Result<()>`");
                return Err(Error::new(other.span(), message));
            }
        };
        add(function, value);
    }
    add("seeds", option(attributes.positive_u32("seeds")?));
    let snapshots = attributes.positive_u32("num_snapshots")?.unwrap_or(0);
    add("num_snapshots", quote!(#snapshots));
    if let Some(disk) = attributes.value("disk")? {
        add("disk", quote!(::core::option::Option::Some(#disk)));
    }
    if let Some(networks) = networks(attributes)? {
        add("networks", quote!(const { &#networks }));
    }
    for (key, what) in [("bpf_map_write", "BpfMapWrite"), ("watch_bpf_maps", "WatchBpfMap")] {
        if let Some(list) = constants(attributes, key, what)? {
            add(key, quote!(const { &#list }));
        }
    }
    for number in ["watchdog_timeout_s", "cpu_budget", "cleanup_budget_ms"] {
        add(number, option(attributes.positive_u32(number)?));
    }
    add("workload_root_cgroup", option(attributes.text("workload_root_cgroup")?));
    Ok(fields)
}

/// `Some(&NAME)` for an attribute that names a static or constant.
fn reference(attributes: &Attributes, key: &str, what: &str) -> Result<TokenStream> {
    match attributes.value(key)? {
        None => Ok(option::<TokenStream>(None)),
        Some(Expr::Path(path)) => Ok(quote!(::core::option::Option::Some(&#path))),
        Some(other) => Err(Error::new(other.span(), format!("`{key}` must be the name of {what}"))),
    }
}

/// A constant, or a list of them, as an array.
fn constants(attributes: &Attributes, key: &str, what: &str) -> Result<Option<TokenStream>> {
    match attributes.value(key)? {
        None => Ok(None),
        Some(one @ Expr::Path(_)) => Ok(Some(quote!([#one]))),
        Some(list @ Expr::Array(array)) if !array.elems.is_empty() => Ok(Some(quote!(#list))),
        Some(other) => {
            let message = format!("`{key}` must be a `{what}` constant or a list of them, `[A, B]`");
            Err(Error::new(other.span(), message))
        }
    }
}

/// A list of constants: an array is what a static can refer to.
fn networks(attributes: &Attributes) -> Result<Option<&Expr>> {
    match attributes.value("networks")? {
        None => Ok(None),
        Some(list @ Expr::Array(array)) if !array.elems.is_empty() => Ok(Some(list)),
        Some(other) => {
            Err(Error::new(other.span(), "`networks` must be a list of `NetConfig` constants, `[NET]`"))
        }
    }
}

/// The compiler checks that disk and networks can be made.
fn device_gate(attributes: &Attributes) -> Result<Option<TokenStream>> {
    let (disk, networks) = (attributes.value("disk")?, networks(attributes)?);
    let Some(span) = disk.or(networks).map(Spanned::span) else { return Ok(None) };
    let disk = option(disk);
    let networks = networks.map_or_else(|| quote!(&[]), |networks| quote!(&#networks));
    Ok(Some(quote_spanned!(span=> const _: () = ::ktstr::host::device_gate(#disk, #networks);)))
}

/// The compiler checks that a scheduler that takes an inline configuration gets one, and no other does.
fn gate(attributes: &Attributes) -> Result<TokenStream> {
    let Some(Expr::Path(scheduler)) = attributes.value("scheduler")? else { return Ok(quote!()) };
    let given = attributes.find("config").is_some();
    let span = attributes.find("config").map_or_else(|| scheduler.span(), |config| config.key.span());
    Ok(quote_spanned!(span=> const _: () = ::ktstr::host::config_gate(&#scheduler, #given);))
}

/// Which shapes a gauntlet runs the test on.
fn constraints(attributes: &Attributes) -> Result<TokenStream> {
    let mut fields = TokenStream::new();
    for key in LIMITS.iter().flat_map(|(min, max)| [*min, *max]) {
        if let Some(value) = attributes.positive_u32(key)? {
            let key = format_ident!("{}", key);
            fields.extend(quote!(#key: ::core::option::Option::Some(#value),));
        }
    }
    let smt = option(attributes.flag("requires_smt")?);
    Ok(quote!(::ktstr::host::Constraints { #fields requires_smt: #smt, ..::ktstr::host::Constraints::NONE }))
}

fn expectation(attributes: &Attributes) -> Result<TokenStream> {
    let err = attributes.flag("expect_err")?.unwrap_or(false);
    let storm = attributes.flag("survives_storm")?.unwrap_or(false);
    let looked_into = attributes.flag("expect_auto_repro")?.unwrap_or(false);
    let contains = option(attributes.text("expect_scx_bpf_error_contains")?);
    let matches = option(attributes.text("expect_scx_bpf_error_matches")?);
    Ok(quote!(::ktstr::host::Expect {
        err: #err,
        error_contains: #contains,
        error_matches: #matches,
        survives_storm: #storm,
        auto_repro: #looked_into,
    }))
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

fn thresholds(attributes: &Attributes) -> Result<TokenStream> {
    let mut calls = TokenStream::new();
    let mut add = |key: &str, value: Option<TokenStream>| {
        if let Some(value) = value {
            let key = format_ident!("{}", key);
            calls.extend(quote!(.#key(#value)));
        }
    };
    for key in FLAG_THRESHOLDS {
        add(key, attributes.flag(key)?.map(|value| quote!(#value)));
    }
    for key in NUMBER_THRESHOLDS {
        add(key, attributes.number(key)?.map(|value| quote!(#value)));
    }
    for key in PERCENT_THRESHOLDS {
        add(key, attributes.percent(key)?.map(|value| quote!(#value)));
    }
    for key in SHARE_THRESHOLDS {
        add(key, attributes.share(key)?.map(|value| quote!(#value)));
    }
    for key in U32_THRESHOLDS {
        let value = match FROM_ZERO.contains(key) {
            true => attributes.natural_u32(key)?,
            false => attributes.positive_u32(key)?,
        };
        add(key, value.map(|value| quote!(#value)));
    }
    for key in U64_THRESHOLDS {
        let value = match FROM_ZERO.contains(key) {
            true => attributes.natural(key)?,
            false => attributes.positive(key)?,
        };
        add(key, value.map(|value| quote!(#value)));
    }
    Ok(quote!(::ktstr::prelude::Assert::NO_OVERRIDES #calls))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attribute_is_in_the_book() {
        let page = include_str!("../../docs/reference/attributes.md");
        let missing: Vec<_> = keys().into_iter().filter(|key| !page.contains(&format!("`{key}`"))).collect();
        assert!(missing.is_empty(), "docs/reference/attributes.md says nothing of {missing:?}");
    }

    #[test]
    fn limits_of_zero_are_taken_where_they_can_be_kept() {
        let expanded = |attributes: TokenStream| {
            let function = quote!(
                fn t(ctx: &Ctx) -> Result<AssertResult> {
                    scenarios::steady(ctx)
                }
            );
            expand(attributes, function).map(|tokens| tokens.to_string())
        };
        let text = expanded(quote!(balancing_ms = 0, max_local_dsq_depth = 0)).unwrap();
        assert!(
            text.contains("balancing_ms (0u64)") && text.contains("max_local_dsq_depth (0u32)"),
            "{text}"
        );
        for key in U32_THRESHOLDS.iter().chain(U64_THRESHOLDS).filter(|key| !FROM_ZERO.contains(key)) {
            let key = format_ident!("{key}");
            let refused = expanded(quote!(#key = 0)).unwrap_err().to_string();
            assert!(refused.contains("must be at least 1"), "{refused}");
        }
    }

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
        assert!(code.contains("max_spread_pct (12.5f64)"), "{code}");
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
        assert_eq!(code.matches("# [cfg (unix)]").count(), 4, "{code}");
        assert_eq!(code.matches("# [expect (dead_code)]").count(), 1, "{code}");
        assert!(code.contains("name : \"type\""), "{code}");
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
