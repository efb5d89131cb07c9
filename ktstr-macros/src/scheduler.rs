//! `declare_scheduler!(IDENT, { … })`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Error, Expr, Ident, Result, Token, Visibility, braced,
    parse::{Parse, ParseStream},
    spanned::Spanned,
};

use crate::attributes::{Attributes, whole_number};

const KEYS: &[&str] = &["name", "binary", "topology", "sched_args", "kernels", "assert"];

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
    let required = |key: &str| {
        fields
            .text(key)?
            .ok_or_else(|| Error::new(ident.span(), format!("scheduler `{ident}` needs `{key} = \"…\"`")))
    };
    let (name, binary) = (required("name")?, required("binary")?);
    let [nodes, llcs, cores, threads] = topology(&fields)?;
    let (sched_args, kernels) = (fields.texts("sched_args")?, fields.texts("kernels")?);
    let assert = match fields.value("assert")? {
        Some(expr) => quote!(#expr),
        None => quote!(::ktstr::prelude::Assert::NO_OVERRIDES),
    };
    let visibility = match visibility {
        Visibility::Inherited => quote!(pub),
        given => quote!(#given),
    };
    let registration = format_ident!("__KTSTR_SCHEDULER_{}", ident);
    let doc = format!("The scheduler `{name}`.");
    Ok(quote! {
        #[doc = #doc]
        #visibility static #ident: ::ktstr::Scheduler = ::ktstr::Scheduler {
            name: #name,
            binary: #binary,
            topology: ::ktstr::prelude::Topology {
                numa_nodes: #nodes,
                llcs: #llcs,
                cores: #cores,
                threads: #threads,
            },
            sched_args: &[#(#sched_args),*],
            kernels: &[#(#kernels),*],
            assert: #assert,
            package: ::core::env!("CARGO_PKG_NAME"),
        };

        #[::ktstr::__private::linkme::distributed_slice(::ktstr::KTSTR_SCHEDULERS)]
        #[linkme(crate = ::ktstr::__private::linkme)]
        #[doc(hidden)]
        static #registration: &::ktstr::Scheduler = &#ident;
    })
}

/// Nodes, LLCs, cores, threads; the default is one LLC with two cores.
fn topology(fields: &Attributes) -> Result<[u32; 4]> {
    const FORM: &str = "`topology` must be `(numa_nodes, llcs, cores, threads)`, e.g. `(1, 2, 4, 1)`";
    let Some(value) = fields.value("topology")? else { return Ok([1, 1, 2, 1]) };
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
    let [nodes, llcs, ..] = numbers;
    if llcs % nodes != 0 {
        let message = format!(
            "{llcs} LLCs cannot be divided evenly among {nodes} NUMA nodes; the second number counts the whole machine"
        );
        return Err(Error::new(value.span(), message));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn bad_declarations_say_what_is_wrong() {
        for (input, message) in [
            (quote!(S, { binary = "b" }), "scheduler `S` needs `name = \"…\"`"),
            (quote!(S, { name = "n" }), "scheduler `S` needs `binary = \"…\"`"),
            (quote!(S, { name = "n", binary = "" }), "`binary` must be a string that is not empty"),
            (
                quote!(S, { name = "n", binary = "b", sched_arg = [] }),
                "unknown key `sched_arg`, did you mean `sched_args`?",
            ),
            (quote!(S, { name = "n", name = "m", binary = "b" }), "`name` is given twice"),
            (
                quote!(S, { name = "n", binary = "b", sched_args = "-v" }),
                "`sched_args` must be a list of strings, `[\"…\", \"…\"]`",
            ),
            (
                quote!(S, { name = "n", binary = "b", topology = (1, 2) }),
                "`topology` must be `(numa_nodes, llcs, cores, threads)`, e.g. `(1, 2, 4, 1)`",
            ),
            (
                quote!(S, { name = "n", binary = "b", topology = (1, 0, 1, 1) }),
                "every dimension of `topology` is at least 1",
            ),
            (
                quote!(S, { name = "n", binary = "b", topology = (2, 3, 1, 1) }),
                "3 LLCs cannot be divided evenly among 2 NUMA nodes; the second number counts the whole machine",
            ),
        ] {
            assert_eq!(expand(input).unwrap_err().to_string(), message);
        }
    }
}
