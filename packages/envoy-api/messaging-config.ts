/** What a sidecar is told of the message mesh: by xDS, as JSON. Pilot makes it of Components, Subscriptions, Resiliency and our own kinds. */
export interface MessagingConfig {
  readonly appId: string;
  readonly components: readonly PubSubComponent[];
  /** Of Subscription resources; the application may declare more itself. */
  readonly subscriptions: readonly Subscription[];
  readonly topicPolicies: readonly TopicPolicy[];
  readonly canaries: readonly CanaryRoute[];
  readonly resiliency: Readonly<Record<string, ResiliencyPolicy>>;
}

export interface PubSubComponent {
  readonly name: string;
  /** `pubsub.mizzen`, `pubsub.jetstream`, `pubsub.rabbitmq`, `pubsub.redis` */
  readonly type: string;
  readonly metadata: Readonly<Record<string, string>>;
  /** Fields of the metadata whose values are generic secrets, with the secrets' names in SDS. Absent in the configuration of an earlier control plane. */
  readonly secretNames?: Readonly<Record<string, string>>;
  /** In the sidecar: fields of the metadata that hold the values of secrets. */
  readonly secretFields?: readonly string[];
}

export interface Subscription {
  readonly pubsubname: string;
  readonly topic: string;
  readonly rules: readonly { readonly match: string; readonly path: string }[];
  /** Where what meets no rule goes; '': it is dropped. */
  readonly defaultPath: string;
  readonly deadLetterTopic: string;
  readonly bulk: { readonly maxMessagesCount: number; readonly maxAwaitDurationMs: number } | undefined;
  readonly metadata: Readonly<Record<string, string>>;
  readonly type: 'DECLARATIVE' | 'PROGRAMMATIC' | 'STREAMING';
}

/** Who may publish to or subscribe to topics of a component (AuthorizationPolicy with a targetRef to it). */
export interface TopicPolicy {
  readonly name: string;
  readonly pubsub: string;
  readonly action: 'ALLOW' | 'DENY';
  readonly rules: readonly TopicRule[];
}

export interface TopicRule {
  /** SPIFFE identities without `spiffe://`, `*` at one end for any; empty: anybody. */
  readonly principals: readonly string[];
  readonly namespaces: readonly string[];
  /** PUBLISH, SUBSCRIBE; empty: both. */
  readonly operations: readonly string[];
  /** Topics, `*` at one end for any; empty: all. */
  readonly topics: readonly string[];
}

/** A part of a topic's messages goes to another version of the subscriber. */
export interface CanaryRoute {
  readonly name: string;
  readonly pubsub: string;
  readonly topic: string;
  /** Whether this sidecar is of that other version: it then takes nothing from the broker itself. */
  readonly isCanary: boolean;
  readonly routes: readonly {
    readonly headers: Readonly<Record<string, string>>;
    readonly weight: number;
    readonly cluster: string;
    readonly authority: string;
  }[];
}

export interface ResiliencyPolicy {
  /** undefined: the default. */
  readonly timeoutMs: number | undefined;
  readonly retry:
    | { readonly policy: 'constant' | 'exponential'; readonly durationMs: number; readonly maxIntervalMs: number; readonly maxRetries: number }
    | undefined;
}

/** The account of the mesh's own broker. */
export const brokerAccount = { namespace: 'mizzen-system', serviceAccount: 'mizzen-broker' } as const;

/** What the mesh's own broker enforces: by xDS, as JSON, for the broker's account alone. */
export interface BrokerPolicy {
  readonly components: readonly BrokerComponent[];
  readonly apps: readonly BrokerApp[];
}

/** A Component of type pubsub.mizzen, without its secrets. */
export interface BrokerComponent extends PubSubComponent {
  readonly namespace: string;
  /** App ids that may use it; empty: all of its namespace. */
  readonly scopes: readonly string[];
  /** Of its namespace, with this Component as target. */
  readonly topicPolicies: readonly TopicPolicy[];
}

/** An app id that an object (Workload, WorkloadGroup, WorkloadEntry) binds to a service account. */
export interface BrokerApp {
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly appId: string;
}

export const noMessaging: MessagingConfig = { appId: '', components: [], subscriptions: [], topicPolicies: [], canaries: [], resiliency: {} };
