import { parseSpiffeId } from '@mizzen/common';
import type { BrokerComponent, BrokerPolicy } from '@mizzen/envoy-api';
import { refusalOf } from './topic-access.ts';
import { splitFullName } from './topic-names.ts';

export type TopicOperation = 'PUBLISH' | 'SUBSCRIBE';

/** The caller of a connection: what its certificate proves, and the app id that it says it has. */
export interface BrokerPeer {
  /** `spiffe://...` */
  readonly identity: string;
  /** Claimed; it counts only where an object binds it to the identity's service account. undefined: the sidecar is of an earlier version. */
  readonly appId: string | undefined;
}

/**
 * What the mesh's own broker enforces as a server, whatever the sidecars do: scopes of Components, AuthorizationPolicies for topics, and which groups belong to
 * which application. Without a policy from the control plane everything is refused.
 */
export class BrokerAccess {
  readonly #listeners: Set<() => void>;
  #policy: BrokerPolicy | undefined;
  #components: ReadonlyMap<string, BrokerComponent>;
  /** App ids by `NAMESPACE/SERVICE_ACCOUNT`. */
  #apps: ReadonlyMap<string, readonly string[]>;
  /** `NAMESPACE/APP_ID` of all. */
  #appNames: ReadonlySet<string>;

  constructor() {
    this.#listeners = new Set();
    this.#policy = undefined;
    this.#components = new Map();
    this.#apps = new Map();
    this.#appNames = new Set();
  }

  get isKnown(): boolean {
    return this.#policy !== undefined;
  }

  /** The spaces of topics that there are: one for each Component. */
  get spaces(): readonly string[] {
    return [...this.#components.keys()];
  }

  use(policy: BrokerPolicy): void {
    this.#policy = policy;
    this.#components = new Map(policy.components.map((component) => [`${component.namespace}/${component.name}`, component]));
    const apps = new Map<string, string[]>();
    for (const { namespace, serviceAccount, appId } of policy.apps) {
      const account = `${namespace}/${serviceAccount}`;
      apps.set(account, [...(apps.get(account) ?? []), appId]);
    }
    this.#apps = apps;
    this.#appNames = new Set(policy.apps.map(({ namespace, appId }) => `${namespace}/${appId}`));
    for (const listener of [...this.#listeners]) listener();
  }

  /** Returns what ends it. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Whether the app id of a peer is bound to its identity. */
  isBound({ identity, appId }: BrokerPeer): boolean {
    return appId !== undefined && this.#appsOf(identity).includes(appId);
  }

  /**
   * The full name of the topic that a peer means. Sidecars of earlier versions name no Component: theirs is the only one of their namespace. undefined: it
   * cannot be told.
   */
  fullNameFor({ identity }: BrokerPeer, name: string): string | undefined {
    if (splitFullName(name).space !== '') return name;
    const own = this.spaces.filter((space) => space.startsWith(`${accountOf(identity)?.namespace}/`));
    return own.length === 1 ? `${own[0]}|${name}` : undefined;
  }

  /** Why a peer may not do this with a topic; undefined: it may. */
  refusal(peer: BrokerPeer, operation: TopicOperation, fullName: string): string | undefined {
    if (this.#policy === undefined) return 'the broker has received no policies from the control plane yet';
    const { space, topic } = splitFullName(fullName);
    const { identity, appId } = peer;
    const component = this.#components.get(space);
    const namespace = accountOf(identity)?.namespace;
    if (component === undefined || component.namespace !== namespace)
      return space === ''
        ? `the sidecar of ${identity} names no Component: upgrade it`
        : `there is no Component ${space} for ${identity}: a workload uses the Components of its own namespace`;
    const bound = this.#appsOf(identity);
    if (bound.length === 0) return `no Workload, WorkloadGroup or WorkloadEntry binds an application to ${identity}`;
    if (appId !== undefined && !bound.includes(appId)) return `app id ${JSON.stringify(appId)} is not bound to ${identity}`;
    for (const app of appId === undefined ? bound : [appId]) {
      if (component.scopes.length > 0 && !component.scopes.includes(app)) return `the scopes of the Component ${space} do not list app ${app}`;
      const refusal = refusalOf({ operation, pubsub: component.name, topic, appId: app, principal: identity }, component, component.topicPolicies);
      if (refusal !== undefined) return refusal;
    }
    return undefined;
  }

  /**
   * Whose a group of a topic is. One that has the name of an application of the namespace belongs to that application; any other to the identity of its first
   * member. `owner`: that identity; '': it has had none.
   */
  ownershipOf({ identity }: BrokerPeer, fullName: string, group: string, owner: string): 'own' | 'free' | 'foreign' {
    const [namespace] = splitFullName(fullName).space.split('/');
    if (this.#appNames.has(`${namespace}/${group}`))
      return accountOf(identity)?.namespace === namespace && this.#appsOf(identity).includes(group) ? 'own' : 'foreign';
    return owner === '' ? 'free' : owner === identity ? 'own' : 'foreign';
  }

  #appsOf(identity: string): readonly string[] {
    const account = accountOf(identity);
    return account === undefined ? [] : (this.#apps.get(`${account.namespace}/${account.serviceAccount}`) ?? []);
  }
}

function accountOf(identity: string): { readonly namespace: string; readonly serviceAccount: string } | undefined {
  const [ns, namespace, sa, serviceAccount, ...more] = parseSpiffeId(identity)?.segments ?? [];
  if (ns !== 'ns' || sa !== 'sa' || namespace === undefined || serviceAccount === undefined || more.length > 0) return undefined;
  return { namespace, serviceAccount };
}
