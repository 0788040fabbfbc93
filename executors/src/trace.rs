//! The trace that an attempt belongs to, for whatever is started on its way. BMCs are not told: their web servers meet few headers
//! that they were not tested with.

use firmesh_protocol::trace::TraceContext;

/// The variable that programs are told in, as OpenTelemetry has it.
pub(crate) const VARIABLE: &str = "TRACEPARENT";

tokio::task_local! {
    static CONTEXT: Option<TraceContext>;
}

/// Does something in a trace: the programs that it runs are told so.
pub async fn traced<T>(context: Option<TraceContext>, done: impl Future<Output = T>) -> T {
    CONTEXT.scope(context, done).await
}

/// Where what runs now belongs, if it is traced.
pub(crate) fn context() -> Option<TraceContext> {
    CONTEXT.try_with(|context| *context).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_done_in_a_trace_knows_it_and_nothing_else_does() {
        let there = TraceContext::new([1; 16], [2; 8], true);
        assert_eq!(traced(Some(there), async { context() }).await, Some(there));
        assert_eq!(traced(None, async { context() }).await, None);
        assert_eq!(context(), None);
    }
}
