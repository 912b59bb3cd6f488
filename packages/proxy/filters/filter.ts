import type { Exchange } from '../http/exchange.ts';
import type { ResponseHead } from '../message/response-head.ts';

/**
 * An HTTP filter: one object with the phases it takes part in. `continue` hands the request on; `stop` means that the filter has
 * answered it, or will call `exchange.resumeFilters()` later.
 */
export interface HttpFilter {
  readonly name: string;
  onRequest?(exchange: Exchange): 'continue' | 'stop';
  /** May change the head of an answer before it goes to the client: the server's, or the proxy's own. */
  onResponse?(exchange: Exchange, head: ResponseHead): void;
}
