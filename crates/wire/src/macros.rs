//! `interface!`: one declaration, from which the rest follows.

/// Declares an interface.
///
/// ```
/// hurdle_wire::interface! {
///     /// Counts things.
///     pub mod counter = 1000 {
///         retired 2;
///         /// Says how many there are.
///         1 idempotent fn count(what: String) -> u64;
///         /// Adds some.
///         3 fn add(what: String, how_many: u64);
///         /// May be lost.
///         4 oneway fn hint(what: String);
///     }
/// }
/// ```
/// Every call has a number, which is never used for another one: what is removed goes to `retired`. Both a number used
/// twice and the use of a retired one fail to compile. `idempotent`: doing it twice is as good as once, so the wire sends
/// it again when the server died before it answered; any other call reports [`Dead`](crate::CallError::Dead).
/// `oneway`: there is no reply.
///
/// Arguments and results are types that implement serde's `Serialize` and `Deserialize`, and `Debug`; among them are
/// [`Fd`](crate::Fd), [`Channel`](crate::Channel) and [`Bytes`](crate::Bytes). Types named in the declaration are looked
/// up where it stands. A new call or interface may be added at any time; changing the types of an existing call is a new
/// call. Sequences of zero-sized elements are not allowed: nothing would bound their length.
///
/// In the module there are then:
/// - `INTERFACE`, the declaration as data (see [`Interface`](crate::Interface));
/// - `trait Server`, with a method for each call that gets a [`Context`](crate::Context) before its arguments. A method
///   left out refuses with ENOSYS. Implement them as `async fn`;
/// - `fn service(server)`, to serve one, or an `Arc` of one (see [`serve`](crate::serve));
/// - `struct Client`, with a method for each call that returns a [`Call`](crate::Call).
#[macro_export]
macro_rules! interface {
    (
        $(#[doc = $doc:literal])*
        $vis:vis mod $module:ident = $number:literal {
            retired $($retired:literal),+;
            $($calls:tt)*
        }
    ) => {
        $crate::interface! { @munch
            [$(#[doc = $doc])* $vis mod $module = $number; retired [$($retired),+]] [] $($calls)* }
    };
    (
        $(#[doc = $doc:literal])*
        $vis:vis mod $module:ident = $number:literal { $($calls:tt)* }
    ) => {
        $crate::interface! { @munch [$(#[doc = $doc])* $vis mod $module = $number; retired []] [] $($calls)* }
    };

    // Each call is brought to one form: number, idempotent, oneway, docs, name, arguments, result.
    (@munch $head:tt [$($done:tt)*]
        $(#[doc = $doc:literal])* $number:literal idempotent fn $name:ident $args:tt $(-> $result:ty)?; $($rest:tt)*
    ) => {
        $crate::interface! { @munch $head
            [$($done)* { $number true false [$($doc)*] $name $args [$($result)?] }] $($rest)* }
    };
    (@munch $head:tt [$($done:tt)*]
        $(#[doc = $doc:literal])* $number:literal oneway fn $name:ident $args:tt; $($rest:tt)*
    ) => {
        $crate::interface! { @munch $head
            [$($done)* { $number false true [$($doc)*] $name $args [] }] $($rest)* }
    };
    (@munch $head:tt [$($done:tt)*]
        $(#[doc = $doc:literal])* $number:literal fn $name:ident $args:tt $(-> $result:ty)?; $($rest:tt)*
    ) => {
        $crate::interface! { @munch $head
            [$($done)* { $number false false [$($doc)*] $name $args [$($result)?] }] $($rest)* }
    };

    (@munch
        [$(#[doc = $doc:literal])* $vis:vis mod $module:ident = $number:literal; retired [$($retired:literal),*]]
        [$({
            $call:literal $idempotent:literal $oneway:literal [$($call_doc:literal)*]
            $name:ident ($($arg:ident : $type:ty),* $(,)?) [$($result:ty)?]
        })*]
    ) => {
        $(#[doc = $doc])*
        #[allow(unreachable_pub, unused_imports, clippy::too_many_arguments)]
        $vis mod $module {
            use super::*;

            const _: () = $crate::__private::check_numbers($number, &[$($call),*], &[$($retired),*]);

            const CALLS: &[$crate::CallInfo] = &[$($crate::CallInfo {
                number: $call,
                name: ::core::stringify!($name),
                doc: ::core::concat!($($call_doc, "\n"),*),
                arguments: &[$((::core::stringify!($arg), ::core::stringify!($type))),*],
                result: $crate::__result_name!($($result)?),
                idempotent: $idempotent,
                oneway: $oneway,
                print_arguments: |payload, fds| $crate::__private::print_arguments(payload, fds, show::$name),
                print_result: $crate::__private::print_result::<$crate::__result!($($result)?)>,
            }),*];

            /// The declaration of this interface as data.
            pub const INTERFACE: $crate::Interface = $crate::Interface {
                number: $number,
                name: ::core::stringify!($module),
                doc: ::core::concat!($($doc, "\n"),*),
                calls: CALLS,
                retired: &[$($retired),*],
            };

            /// What serves this interface. A call that is left out is refused with ENOSYS.
            pub trait Server: ::core::marker::Send + ::core::marker::Sync + 'static {$(
                $(#[doc = $call_doc])*
                fn $name(
                    &self,
                    context: &$crate::Context,
                    $($arg: $type),*
                ) -> impl ::core::future::Future<
                    Output = ::core::result::Result<$crate::__result!($($result)?), $crate::Refused>,
                > + ::core::marker::Send {
                    let _ = (context, $($arg),*);
                    ::core::future::ready(::core::result::Result::Err($crate::__private::not_implemented(
                        &INTERFACE,
                        ::core::stringify!($name),
                    )))
                }
            )*}

            /// Serves this interface with `server`.
            pub fn service<S: Server>(server: S) -> impl $crate::Service {
                Dispatch(::std::sync::Arc::new(server))
            }

            impl<S: Server> Server for ::std::sync::Arc<S> {$(
                fn $name(
                    &self,
                    context: &$crate::Context,
                    $($arg: $type),*
                ) -> impl ::core::future::Future<
                    Output = ::core::result::Result<$crate::__result!($($result)?), $crate::Refused>,
                > + ::core::marker::Send {
                    S::$name(self, context, $($arg),*)
                }
            )*}

            struct Dispatch<S>(::std::sync::Arc<S>);

            impl<S: Server> $crate::Service for Dispatch<S> {
                fn interface(&self) -> &'static $crate::Interface {
                    &INTERFACE
                }

                fn dispatch(&self, incoming: $crate::Incoming<'_>) -> $crate::Answering {
                    match incoming.call() {
                        $($call => {
                            let server = ::std::sync::Arc::clone(&self.0);
                            $crate::__private::run(
                                incoming,
                                &INTERFACE,
                                const { $crate::Interface::expect(CALLS, $call) },
                                show::$name,
                                |context, ($($arg,)*): ($($type,)*)| async move {
                                    server.$name(&context, $($arg),*).await
                                },
                            )
                        })*
                        _ => incoming.unknown(&INTERFACE),
                    }
                }
            }

            /// Calls a server of this interface.
            #[derive(Clone, Debug)]
            pub struct Client($crate::Connection);

            impl Client {
                /// A client on a connection, which may be shared with clients of other interfaces.
                pub fn new(connection: &$crate::Connection) -> Client {
                    Client(connection.clone())
                }

                /// The connection.
                pub fn connection(&self) -> &$crate::Connection {
                    &self.0
                }

                $(
                    $(#[doc = $call_doc])*
                    pub fn $name(&self, $($arg: $type),*) -> $crate::Call<$crate::__result!($($result)?)> {
                        $crate::Call::new(
                            &self.0,
                            &INTERFACE,
                            const { $crate::Interface::expect(CALLS, $call) },
                            &($($arg,)*),
                            show::$name,
                        )
                    }
                )*
            }

            impl ::core::convert::From<$crate::Channel> for Client {
                fn from(channel: $crate::Channel) -> Client {
                    Client($crate::Connection::new(channel))
                }
            }

            /// The arguments of each call for a line of trace.
            mod show {
                use super::*;
                $(
                    pub(super) fn $name(($($arg,)*): &($($type,)*)) -> ::std::string::String {
                        #[allow(unused_mut)]
                        let mut line = ::std::string::String::new();
                        $($crate::__private::field(&mut line, ::core::stringify!($arg), $arg);)*
                        line
                    }
                )*
            }
        }
    };

    (@munch $head:tt $done:tt $($rest:tt)+) => {
        ::core::compile_error!(
            "a call is declared as `NUMBER fn name(argument: Type) -> Result;`, with `idempotent` or `oneway` (which has \
             no result) before `fn`"
        );
    };
}

/// The result type of a call, `()` where none is written.
#[doc(hidden)]
#[macro_export]
macro_rules! __result {
    () => {
        ()
    };
    ($result:ty) => {
        $result
    };
}

/// The name of the result type of a call.
#[doc(hidden)]
#[macro_export]
macro_rules! __result_name {
    () => {
        "()"
    };
    ($result:ty) => {
        ::core::stringify!($result)
    };
}
