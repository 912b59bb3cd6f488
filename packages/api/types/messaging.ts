/** Dapr's kinds for messages (dapr.io), the fields that have behaviour. */
export interface ComponentSpec {
  readonly type: string;
  readonly metadata?: readonly {
    readonly name: string;
    readonly value?: unknown;
    readonly secretKeyRef?: { readonly name: string; readonly key?: string };
    readonly envRef?: string;
  }[];
}

/** v1alpha1 (`route`) and v2alpha1 (`routes`). */
export interface SubscriptionSpec {
  readonly pubsubname: string;
  readonly topic: string;
  readonly route?: string;
  readonly routes?: { readonly rules?: readonly { readonly match?: string; readonly path: string }[]; readonly default?: string };
  readonly deadLetterTopic?: string;
  readonly bulkSubscribe?: { readonly enabled?: boolean; readonly maxMessagesCount?: number; readonly maxAwaitDurationMs?: number };
  readonly metadata?: Readonly<Record<string, string>>;
}

export interface ResiliencySpec {
  readonly policies?: {
    readonly timeouts?: Readonly<Record<string, string>>;
    readonly retries?: Readonly<
      Record<string, { readonly policy?: 'constant' | 'exponential'; readonly duration?: string; readonly maxInterval?: string; readonly maxRetries?: number }>
    >;
  };
  readonly targets?: { readonly components?: Readonly<Record<string, { readonly inbound?: { readonly timeout?: string; readonly retry?: string } }>> };
}

/** mizzen.dev/v1alpha1 MessageRoute. */
export interface MessageRouteSpec {
  readonly pubsub: string;
  readonly topic: string;
  readonly subscriber: { readonly service: string; readonly port?: number };
  readonly routes: readonly { readonly subset: string; readonly weight?: number; readonly headers?: Readonly<Record<string, string>> }[];
}
