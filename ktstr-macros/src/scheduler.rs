//! `declare_scheduler!(IDENT, { … })`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Error, Expr, Ident, Result, Token, Visibility, braced,
    parse::{Parse, ParseStream},
    spanned::Spanned,
};

use crate::{
    attributes::{Attributes, expected, whole_number},
    cell_parent, limits, presets,
};

const KEYS: &[&str] = &[
    "name",
    "binary",
    "binary_path",
    "kernel_builtin_enable",
    "kernel_builtin_disable",
    "topology",
    "sched_args",
    "kernels",
    "assert",
    "kargs",
    "sysctls",
    "constraints",
    "cgroup_parent",
    "config_file",
    "config_file_def",
    "verifier_exclude_topologies",
];

struct Declaration {
    visibility: Visibility,
    ident: Ident,
    fields: Attributes,
}

impl Parse for Declaration {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let visibility: Visibility = input.parse()?;
        let ident = input.parse()?;
        input.parse::<Token![,]>()?;
        let body;
        braced!(body in input);
        let fields = Attributes::parse_known(&body, KEYS)?;
        input.parse::<Option<Token![,]>>()?;
        Ok(Self { visibility, ident, fields })
    }
}

pub fn expand(input: TokenStream) -> Result<TokenStream> {
    let Declaration { visibility, ident, fields } = syn::parse2(input)?;
    let Some(name) = fields.text("name")? else {
        return Err(Error::new(ident.span(), format!("scheduler `{ident}` needs `name = \"…\"`")));
    };
    let calls = [binary(&ident, &fields)?, places(&fields)?, lists(&fields)?, rest(&fields)?];
    let visibility = match visibility {
        Visibility::Inherited => quote!(pub),
        given => quote!(#given),
    };
    let registration = format_ident!("__KTSTR_SCHEDULER_{}", ident);
    let doc = format!("The scheduler `{name}`.");
    Ok(quote! {
        #[doc = #doc]
        #visibility static #ident: ::ktstr::Scheduler = ::ktstr::Scheduler::named(#name)
            #(#calls)*
            .package(::core::env!("CARGO_PKG_NAME"), ::core::env!("CARGO_MANIFEST_DIR"));

        #[::ktstr::__private::linkme::distributed_slice(::ktstr::KTSTR_SCHEDULERS)]
        #[linkme(crate = ::ktstr::__private::linkme)]
        #[doc(hidden)]
        static #registration: &::ktstr::Scheduler = &#ident;
    })
}

/// Exactly one source of the executable.
fn binary(ident: &Ident, fields: &Attributes) -> Result<TokenStream> {
    if let Some(call) = builtin(fields)? {
        return Ok(call);
    }
    match (fields.text("binary")?, fields.text("binary_path")?) {
        (Some(name), None) => Ok(quote!(.binary_discover(#name))),
        (None, Some(path)) if path.starts_with('/') => Ok(quote!(.binary_path(#path))),
        (None, Some(_)) => {
            let span = fields.value("binary_path")?.map_or(ident.span(), Spanned::span);
            Err(Error::new(span, "`binary_path` must begin with `/`; a name to be found goes into `binary`"))
        }
        (Some(_), Some(_)) => {
            let span = fields.find("binary_path").map_or(ident.span(), |field| field.key.span());
            Err(Error::new(span, "`binary` and `binary_path` cannot stand together: say one of them"))
        }
        (None, None) => {
            let message = format!("scheduler `{ident}` needs `binary = \"…\"` or `binary_path = \"/…\"`");
            Err(Error::new(ident.span(), message))
        }
    }
}

/// The kernel itself as the source: commands for both directions, and nothing that only a program has.
fn builtin(fields: &Attributes) -> Result<Option<TokenStream>> {
    const PAIR: [&str; 2] = ["kernel_builtin_enable", "kernel_builtin_disable"];
    let given = PAIR.map(|key| fields.find(key));
    let [enable, disable] = [fields.texts(PAIR[0])?, fields.texts(PAIR[1])?];
    match given {
        [None, None] => return Ok(None),
        [Some(_), Some(_)] => {}
        [Some(one), None] | [None, Some(one)] => {
            let message = "`kernel_builtin_enable` and `kernel_builtin_disable` stand together: what is switched on \
                           is switched off";
            return Err(Error::new(one.key.span(), message));
        }
    }
    if enable.is_empty() {
        let span = fields.value(PAIR[0])?.map_or_else(proc_macro2::Span::call_site, Spanned::span);
        return Err(Error::new(span, "`kernel_builtin_enable` needs at least one command"));
    }
    for key in ["binary", "binary_path", "sched_args", "config_file", "config_file_def"] {
        if let Some(other) = fields.find(key) {
            let message =
                format!("`{key}` and `kernel_builtin_enable` cannot stand together: there is no program");
            return Err(Error::new(other.key.span(), message));
        }
    }
    Ok(Some(quote!(.kernel_builtin(&[#(#enable),*], &[#(#disable),*]))))
}

/// Fields that are paths or name them.
fn places(fields: &Attributes) -> Result<TokenStream> {
    let mut calls = TokenStream::new();
    if let Some(parent) = fields.text("cgroup_parent")? {
        if !cell_parent::below_the_root(&parent) {
            let span = fields.value("cgroup_parent")?.map_or(proc_macro2::Span::call_site(), Spanned::span);
            let message = "`cgroup_parent` begins with `/`, is not `/` itself and has no `..` in it";
            return Err(Error::new(span, message));
        }
        calls.extend(quote!(.cgroup_parent(#parent)));
    }
    if let Some(file) = fields.text("config_file")? {
        calls.extend(quote!(.config_file(#file)));
    }
    if let Some(value) = fields.value("config_file_def")? {
        const FORM: &str = "`config_file_def` must be `(\"--config {file}\", \"/path/in/the/guest\")`, with `{file}` in the first";
        let refuse = || Error::new(value.span(), FORM);
        let Expr::Tuple(tuple) = value else { return Err(refuse()) };
        let texts: Vec<String> = tuple.elems.iter().filter_map(literal).collect();
        let [template, path] = texts.as_slice() else { return Err(refuse()) };
        if tuple.elems.len() != 2 || !template.contains("{file}") || !path.starts_with('/') {
            return Err(refuse());
        }
        if let Some(file) = fields.find("config_file") {
            let message =
                "`config_file` and `config_file_def` cannot stand together: one configuration is enough";
            return Err(Error::new(file.key.span(), message));
        }
        calls.extend(quote!(.config_file_def(#template, #path)));
    }
    Ok(calls)
}

fn literal(value: &Expr) -> Option<String> {
    match value {
        Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
        _ => None,
    }
}

fn lists(fields: &Attributes) -> Result<TokenStream> {
    let mut calls = TokenStream::new();
    for key in ["sched_args", "kernels", "kargs", "verifier_exclude_topologies"] {
        let texts = fields.texts(key)?;
        if !texts.is_empty() {
            let method = format_ident!("{}", key);
            calls.extend(quote!(.#method(&[#(#texts),*])));
        }
    }
    presets::check(fields, "verifier_exclude_topologies")?;
    let parent = fields.text("cgroup_parent")?;
    cell_parent::check("sched_args", &fields.text_literals("sched_args")?, parent.as_deref())?;
    for kernels in fields.text_literals("kernels")? {
        if !names_kernels(&kernels.value()) {
            let message = format!(
                "`{}` names no kernels: write a series, `6.18`, or a range of them, `6.17..=7.2`",
                kernels.value()
            );
            return Err(Error::new(kernels.span(), message));
        }
    }
    match fields.value("sysctls")? {
        None => {}
        Some(Expr::Array(list)) => {
            let items = &list.elems;
            calls.extend(quote!(.sysctls(const { &[#items] })));
        }
        Some(other) => {
            return Err(expected(other.span(), "sysctls", "a list, `[Sysctl::new(\"a.b\", \"1\")]`"));
        }
    }
    Ok(calls)
}

/// A version, a series, or a range of series; one of the bounds may be left away.
fn names_kernels(text: &str) -> bool {
    let series = |text: &str| text.split('.').all(|part| part.parse::<u32>().is_ok());
    let Some((low, high)) = text.split_once("..") else {
        // A release candidate or a whole release goes on after its numbers.
        return series(text.split(['-', '+']).next().unwrap_or_default());
    };
    let high = match high.strip_prefix('=') {
        Some(last) => series(last),
        None => high.is_empty() || series(high),
    };
    high && (low.is_empty() || series(low))
}

fn rest(fields: &Attributes) -> Result<TokenStream> {
    let mut calls = TokenStream::new();
    if let Some([nodes, llcs, cores, threads]) = topology(fields)? {
        calls.extend(quote!(.topology(#nodes, #llcs, #cores, #threads)));
    }
    for key in ["assert", "constraints"] {
        if let Some(value) = fields.value(key)? {
            let method = format_ident!("{}", key);
            calls.extend(quote!(.#method(#value)));
        }
    }
    Ok(calls)
}

/// Nodes, LLCs, cores, threads.
fn topology(fields: &Attributes) -> Result<Option<[u32; 4]>> {
    const FORM: &str = "`topology` must be `(numa_nodes, llcs, cores, threads)`, e.g. `(1, 2, 4, 1)`";
    let Some(value) = fields.value("topology")? else { return Ok(None) };
    let Expr::Tuple(tuple) = value else { return Err(Error::new(value.span(), FORM)) };
    let mut numbers = [0; 4];
    if tuple.elems.len() != numbers.len() {
        return Err(Error::new(value.span(), FORM));
    }
    for (number, element) in numbers.iter_mut().zip(&tuple.elems) {
        *number = match u32::try_from(whole_number(element, "topology")?) {
            Ok(0) => return Err(Error::new(element.span(), "every dimension of `topology` is at least 1")),
            Ok(given) => given,
            Err(_) => return Err(Error::new(element.span(), "`topology` must be below 2^32")),
        };
    }
    let [nodes, llcs, cores, threads] = numbers;
    if let Some(message) = limits::uneven(llcs, nodes, "the second number") {
        return Err(Error::new(value.span(), message));
    }
    if let Some((largest, message)) = limits::too_many_cpus([llcs, cores, threads].map(Some)) {
        return Err(Error::new(tuple.elems[largest + 1].span(), message));
    }
    if let Some(message) = limits::too_many_nodes(nodes) {
        return Err(Error::new(tuple.elems[0].span(), message));
    }
    Ok(Some(numbers))
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    #[test]
    fn every_field_is_in_the_book() {
        let page = include_str!("../../docs/reference/scheduler.md");
        let missing: Vec<_> = KEYS.iter().filter(|key| !page.contains(&format!("`{key}`"))).collect();
        assert!(missing.is_empty(), "docs/reference/scheduler.md says nothing of {missing:?}");
    }

    #[test]
    fn the_documented_declaration_is_accepted() {
        let code = expand(quote!(MY_SCHED, {
            name = "my_sched",
            binary = "scx_my_sched",
            topology = (1, 2, 4, 1),
            kernels = ["6.14", "6.15..=7.0"],
            sched_args = ["--exit-dump-len", "1048576"],
        }))
        .unwrap()
        .to_string();
        assert!(code.contains("pub static MY_SCHED : :: ktstr :: Scheduler"), "{code}");
        assert!(code.contains("\"--exit-dump-len\" , \"1048576\""), "{code}");
        assert!(code.contains("KTSTR_SCHEDULERS"), "{code}");
    }

    #[test]
    fn a_cell_parent_that_is_the_declared_one_is_taken() {
        for fields in [
            "sched_args = [\"--cell-parent-cgroup=/a.slice/b/\"], cgroup_parent = \"/a.slice/b\"",
            "sched_args = [\"--cell-parent-cgroup\", \"/a\", \"-v\"]",
            "sched_args = [\"--cell-parent-cgroups=x\"]",
        ] {
            let text = format!("S, {{ name = \"n\", binary = \"b\", {fields} }}");
            let taken = expand(TokenStream::from_str(&text).unwrap());
            assert!(taken.is_ok(), "{fields}: {}", taken.unwrap_err());
        }
    }

    /// Declaration, message, and the text under the marker.
    const REFUSED: &[(&str, &str, &str)] = &[
        ("S, { binary = \"b\" }", "scheduler `S` needs `name = \"…\"`", "S"),
        ("S, { name = \"n\" }", "scheduler `S` needs `binary = \"…\"` or `binary_path = \"/…\"`", "S"),
        ("S, { name = \"n\", binary = \"\" }", "`binary` must be a string that is not empty", "\"\""),
        (
            "S, { name = \"n\", binary = \"b\", sched_arg = [] }",
            "unknown key `sched_arg`, did you mean `sched_args`?",
            "sched_arg",
        ),
        ("S, { name = \"n\", name = \"m\", binary = \"b\" }", "`name` is given twice", "name"),
        (
            "S, { name = \"n\", binary = \"b\", binary_path = \"/b\" }",
            "`binary` and `binary_path` cannot stand together: say one of them",
            "binary_path",
        ),
        (
            "S, { name = \"n\", binary_path = \"b\" }",
            "`binary_path` must begin with `/`; a name to be found goes into `binary`",
            "\"b\"",
        ),
        (
            "S, { name = \"n\", kernel_builtin_enable = [\"echo 1\"] }",
            "`kernel_builtin_enable` and `kernel_builtin_disable` stand together: what is switched on is switched off",
            "kernel_builtin_enable",
        ),
        (
            "S, { name = \"n\", kernel_builtin_enable = [], kernel_builtin_disable = [] }",
            "`kernel_builtin_enable` needs at least one command",
            "[",
        ),
        (
            "S, { name = \"n\", sched_args = [\"-v\"], kernel_builtin_enable = [\"a\"], kernel_builtin_disable = [\"b\"] }",
            "`sched_args` and `kernel_builtin_enable` cannot stand together: there is no program",
            "sched_args",
        ),
        (
            "S, { name = \"n\", binary = \"b\", sched_args = [\"-v\", \"--cell-parent-cgroup\", \"cells\"] }",
            "the path of `--cell-parent-cgroup` begins with `/`, is not `/` itself and has no `..` in it: `cells` cannot be it",
            "\"cells\"",
        ),
        (
            "S, { name = \"n\", binary = \"b\", sched_args = [\"--cell-parent-cgroup=/\"] }",
            "the path of `--cell-parent-cgroup` begins with `/`, is not `/` itself and has no `..` in it: `/` cannot be it",
            "\"--cell-parent-cgroup=/\"",
        ),
        (
            "S, { name = \"n\", binary = \"b\", sched_args = [\"--cell-parent-cgroup=/a/../b\"] }",
            "the path of `--cell-parent-cgroup` begins with `/`, is not `/` itself and has no `..` in it: `/a/../b` cannot be it",
            "\"--cell-parent-cgroup=/a/../b\"",
        ),
        (
            "S, { name = \"n\", binary = \"b\", sched_args = [\"--cell-parent-cgroup\"] }",
            "`--cell-parent-cgroup` in `sched_args` has no path after it: add one, `\"/cells\"`",
            "\"--cell-parent-cgroup\"",
        ),
        (
            "S, { name = \"n\", binary = \"b\", sched_args = [\"--cell-parent-cgroup\", \"/a\"], cgroup_parent = \"/b\" }",
            "`--cell-parent-cgroup /a` and `cgroup_parent = \"/b\"` are two cgroups: the workers would be in one, and the scheduler's cells below the other; say the same twice",
            "\"/a\"",
        ),
        (
            "S, { name = \"n\", binary = \"b\", sched_args = \"-v\" }",
            "`sched_args` must be a list of strings, `[\"…\", \"…\"]`",
            "\"-v\"",
        ),
        (
            "S, { name = \"n\", binary = \"b\", config_file_def = (\"--config\", \"/x\") }",
            "`config_file_def` must be `(\"--config {file}\", \"/path/in/the/guest\")`, with `{file}` in the first",
            "(",
        ),
        (
            "S, { name = \"n\", binary = \"b\", cgroup_parent = \"/a/../b\" }",
            "`cgroup_parent` begins with `/`, is not `/` itself and has no `..` in it",
            "\"/a/../b\"",
        ),
        (
            "S, { name = \"n\", binary = \"b\", kernels = [\"6.18\", \"newest\"] }",
            "`newest` names no kernels: write a series, `6.18`, or a range of them, `6.17..=7.2`",
            "\"newest\"",
        ),
        (
            "S, { name = \"n\", binary = \"b\", verifier_exclude_topologies = [\"tiny-1llc\", \"8cpu-2llc-sm\"] }",
            "unknown preset `8cpu-2llc-sm`, did you mean `8cpu-2llc-smt`?",
            "\"8cpu-2llc-sm\"",
        ),
        (
            "S, { name = \"n\", binary = \"b\", sysctls = \"a=1\" }",
            "`sysctls` must be a list, `[Sysctl::new(\"a.b\", \"1\")]`",
            "\"a=1\"",
        ),
        (
            "S, { name = \"n\", binary = \"b\", config_file = \"f\", config_file_def = (\"--config {file}\", \"/x\") }",
            "`config_file` and `config_file_def` cannot stand together: one configuration is enough",
            "config_file",
        ),
        (
            "S, { name = \"n\", binary = \"b\", topology = (1, 1, 4294967296, 1) }",
            "`topology` must be below 2^32",
            "4294967296",
        ),
        (
            "S, { name = \"n\", binary = \"b\", topology = 4 }",
            "`topology` must be `(numa_nodes, llcs, cores, threads)`, e.g. `(1, 2, 4, 1)`",
            "4",
        ),
        (
            "S, { name = \"n\", binary = \"b\", topology = (1, 2) }",
            "`topology` must be `(numa_nodes, llcs, cores, threads)`, e.g. `(1, 2, 4, 1)`",
            "(",
        ),
        (
            "S, { name = \"n\", binary = \"b\", topology = (1, 0, 1, 1) }",
            "every dimension of `topology` is at least 1",
            "0",
        ),
        (
            "S, { name = \"n\", binary = \"b\", topology = (2, 3, 1, 1) }",
            "3 LLCs cannot be divided evenly among 2 NUMA nodes; the second number counts the whole machine: take 4",
            "(",
        ),
        (
            "S, { name = \"n\", binary = \"b\", topology = (1, 90, 100, 1) }",
            "90 LLCs × 100 cores × 1 threads are 9000 CPUs, more than the 512 a machine can have: take at most 5 cores",
            "100",
        ),
        (
            "S, { name = \"n\", binary = \"b\", topology = (65, 65, 1, 1) }",
            "65 NUMA nodes are more than the 64 a machine can have",
            "65",
        ),
    ];

    #[test]
    fn kernels_are_series_and_ranges() {
        for good in
            ["6.18", "7", "6.15-rc3", "7.2.13+deb14-cloud", "6.15..=7.0", "6.15..7.0", "6.17..", "..=7.2"]
        {
            assert!(names_kernels(good), "{good}");
        }
        for bad in ["", "newest", "6.17..=", "6,18", "6.18x", "a..b", "6..7..8", ".."] {
            assert_eq!(names_kernels(bad), bad == "..", "{bad}");
        }
    }

    #[test]
    fn bad_declarations_say_what_is_wrong_and_where() {
        for (input, message, place) in REFUSED {
            let error = expand(TokenStream::from_str(input).unwrap()).unwrap_err();
            assert_eq!(error.to_string(), *message, "{input}");
            let pointed = error.span().source_text().unwrap_or_default();
            assert!(pointed.starts_with(place), "{input}: points at `{pointed}`, not `{place}`");
        }
    }
}
