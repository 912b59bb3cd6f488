import type { HttpFilter } from './filter.ts';

/** envoy.filters.http.fault: delays and aborts a share of the requests of routes that have a fault policy. */
export function faultFilter(random: () => number): HttpFilter {
  return {
    name: 'envoy.filters.http.fault',
    onRequest(exchange) {
      const policy = exchange.route?.fault;
      if (policy === undefined || policy.requests.some((request) => !request.matches(exchange.head))) return 'continue';
      const aborts = policy.abortShare > 0 && random() < policy.abortShare;
      const abort = () => exchange.reply(policy.abortStatus, 'fault filter abort', 'FI', 'fault_filter_abort', policy.abortGrpcStatus);
      if (policy.delayShare > 0 && random() < policy.delayShare) {
        exchange.addFlag('DI');
        exchange.setTimer(policy.delayMs, () => (aborts ? abort() : exchange.resumeFilters()));
        return 'stop';
      }
      if (!aborts) return 'continue';
      abort();
      return 'stop';
    },
  };
}
