import type { Exchange } from '../http/exchange.ts';

/**
 * An HTTP filter: one object with the phases it takes part in. `continue` hands the request on; `stop` means that the filter has
 * answered it, or will call `exchange.resumeFilters()` later.
 */
export interface HttpFilter {
  readonly name: string;
  onRequest?(exchange: Exchange): 'continue' | 'stop';
}
