import type { Any } from '@bufbuild/protobuf/wkt';
import type { ProxyContext } from '../http/connection-settings.ts';
import type { Exchange } from '../http/exchange.ts';
import type { ResponseHead } from '../message/response-head.ts';

/** What a filter, or a route's word to it, says of queries. */
export interface SecretsInQuery {
  /** Names of query parameters that it reads credentials from or puts them into: logs do not show their values. */
  readonly secretParameters?: readonly string[];
}

/** A note that a filter has told the service who calls: the answer may be meant for this caller alone. */
export const isPersonalNote = 'is-personal';

/**
 * An HTTP filter: one object with the phases it takes part in. `continue` hands the request on; `stop` means that the filter has
 * answered it, or will call `exchange.resumeFilters()` later.
 */
export interface HttpFilter extends SecretsInQuery {
  readonly name: string;
  onRequest?(exchange: Exchange): 'continue' | 'stop';
  /** May change the head of an answer before it goes to the client: the server's, or the proxy's own. */
  onResponse?(exchange: Exchange, head: ResponseHead): void;
}

/** A kind of filter, by the name that configurations call it. Throws MizzenError where a configuration cannot be honoured. */
export interface FilterKind {
  readonly name: string;
  /** Names of the messages by which it is known, too, where a configuration calls it by a name of its own. Absent: by its name alone. */
  readonly typeNames?: readonly string[];
  /** `filterName` is what the configuration calls it; routes say something to it by that name. */
  create(config: Any | undefined, place: string, context: ProxyContext, filterName: string): HttpFilter;
  /** What a route says to it (`typed_per_filter_config`); absent: routes have nothing to say to it. May be a SecretsInQuery and a NeedsSecrets. */
  compileRoute?(config: Any, place: string): unknown;
}
