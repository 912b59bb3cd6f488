import type { MessagingConfig, PubSubComponent, TopicPolicy, TopicRule } from '@mizzen/envoy-api';

/** What is asked for. */
export interface TopicRequest {
  readonly operation: 'PUBLISH' | 'SUBSCRIBE';
  readonly pubsub: string;
  readonly topic: string;
  readonly appId: string;
  /** The caller's verified identity, `spiffe://...`; '': it has none. */
  readonly principal: string;
}

/**
 * Why a workload may not publish to a topic, or subscribe to it; undefined: it may. Both kinds of rules count: Dapr's scopes, which stand in the Component
 * (publishingScopes, subscriptionScopes, allowedTopics, protectedTopics), and AuthorizationPolicies, with Istio's meaning: a DENY that matches refuses; if
 * there is any ALLOW, one of them must match.
 */
export function refusalOf(request: TopicRequest, component: PubSubComponent, policies: MessagingConfig['topicPolicies']): string | undefined {
  return scopeRefusal(request, component) ?? policyRefusal(request, policies);
}

interface Scopes {
  readonly publishing: ReadonlyMap<string, ReadonlySet<string>>;
  readonly subscription: ReadonlyMap<string, ReadonlySet<string>>;
  readonly protectedTopics: readonly string[];
  readonly allowedTopics: readonly string[];
}

/** A component's scopes, read once: it is looked at for every message. */
const readScopes = new WeakMap<PubSubComponent, Scopes>();

function scopesOfComponent(component: PubSubComponent): Scopes {
  let scopes = readScopes.get(component);
  if (scopes === undefined) {
    const { metadata } = component;
    scopes = {
      publishing: scopesOf(metadata['publishingScopes']),
      subscription: scopesOf(metadata['subscriptionScopes']),
      protectedTopics: listOf(metadata['protectedTopics']),
      allowedTopics: listOf(metadata['allowedTopics']),
    };
    readScopes.set(component, scopes);
  }
  return scopes;
}

function scopeRefusal({ operation, topic, appId }: TopicRequest, component: PubSubComponent): string | undefined {
  const { publishing, subscription, protectedTopics, allowedTopics } = scopesOfComponent(component);
  const own = (operation === 'PUBLISH' ? publishing : subscription).get(appId);
  const isNamed = own?.has(topic) === true;
  if (protectedTopics.includes(topic) && !isNamed) return `topic ${topic} is protected, and no scope of this component names it for app ${appId}`;
  if (allowedTopics.length > 0 && !allowedTopics.includes(topic) && !protectedTopics.includes(topic))
    return `topic ${topic} is not among the component's allowedTopics`;
  // Who is named has what is named for it, and nothing else; who is not, has everything.
  if (own !== undefined && !isNamed)
    return `the component's ${operation === 'PUBLISH' ? 'publishingScopes' : 'subscriptionScopes'} do not give topic ${topic} to app ${appId}`;
  return undefined;
}

/** `app1=topic1,topic2;app2=` */
function scopesOf(text: string | undefined): Map<string, ReadonlySet<string>> {
  const scopes = new Map<string, ReadonlySet<string>>();
  for (const part of (text ?? '').split(';')) {
    const cut = part.indexOf('=');
    if (cut > 0) scopes.set(part.slice(0, cut).trim(), new Set(listOf(part.slice(cut + 1))));
  }
  return scopes;
}

const listOf = (text: string | undefined): string[] => (text ?? '').split(',').flatMap((entry) => (entry.trim() === '' ? [] : [entry.trim()]));

function policyRefusal(request: TopicRequest, policies: readonly TopicPolicy[]): string | undefined {
  if (policies.length === 0) return undefined;
  const own = policies.filter(({ pubsub }) => pubsub === request.pubsub);
  const matches = ({ rules }: TopicPolicy) => rules.some((rule) => ruleMatches(rule, request));
  const denied = own.find((policy) => policy.action === 'DENY' && matches(policy));
  if (denied !== undefined) return `AuthorizationPolicy ${denied.name} denies it`;
  const allows = own.filter(({ action }) => action === 'ALLOW');
  if (allows.length === 0 || allows.some(matches)) return undefined;
  return `no AuthorizationPolicy allows ${request.principal || 'a caller without an identity'} to ${request.operation.toLowerCase()}`;
}

function ruleMatches({ principals, namespaces, operations, topics }: TopicRule, { operation, topic, principal }: TopicRequest): boolean {
  const identity = principal.replace(/^spiffe:\/\//, '');
  const namespace = /\/ns\/([^/]+)\//.exec(identity)?.[1] ?? '';
  return (
    (principals.length === 0 || (identity !== '' && principals.some((pattern) => textMatches(pattern, identity)))) &&
    (namespaces.length === 0 || (namespace !== '' && namespaces.some((pattern) => textMatches(pattern, namespace)))) &&
    (operations.length === 0 || operations.some((pattern) => textMatches(pattern, operation))) &&
    (topics.length === 0 || topics.some((pattern) => textMatches(pattern, topic)))
  );
}

/** Istio's: exact, `prefix*`, `*suffix`, or `*` for anything that is there. */
function textMatches(pattern: string, text: string): boolean {
  if (pattern === '*') return text !== '';
  if (pattern.endsWith('*')) return text.startsWith(pattern.slice(0, -1));
  if (pattern.startsWith('*')) return text.endsWith(pattern.slice(1));
  return pattern === text;
}
