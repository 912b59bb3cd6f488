import type { AuthorizationPolicySpec, MessageRouteSpec, ResiliencySpec } from '@mizzen/api';
import { parseDurationMs } from '@mizzen/common';
import {
  type CanaryRoute,
  type MessagingConfig,
  noMessaging,
  type PubSubComponent,
  type ResiliencyPolicy,
  type Subscription,
  type TopicPolicy,
  type TopicRule,
} from '@mizzen/envoy-api';
import { isForTopics } from '../analysis/not-implemented.ts';
import { componentSecretName } from '../apis/secret-names.ts';
import type { ProxyView } from '../proxy-view.ts';
import { type Configured, type MeshSnapshot, resolveHost, type Scoped } from '../snapshot.ts';
import { implementedService } from './inbound-chains.ts';
import { outboundClusterName } from './names.ts';

/** A component as a sidecar is told of it, and the generic secrets that it names. */
interface ResolvedComponent {
  readonly namespace: string;
  readonly name: string;
  readonly told: PubSubComponent;
  readonly secrets: ReadonlyMap<string, Uint8Array>;
}

/** The components of the sidecar's namespace whose scopes include its app id. */
export function messagingComponents({ appId, namespace }: ProxyView, snapshot: MeshSnapshot): ResolvedComponent[] {
  if (appId === undefined) return [];
  return snapshot.messaging.components
    .filter((component) => component.namespace === namespace && (component.scopes.length === 0 || component.scopes.includes(appId)))
    .map((component) => pubSubComponent(component, snapshot));
}

/** What a sidecar is told of the message mesh: what of its namespace is for its application. */
export function messagingFor(view: ProxyView, snapshot: MeshSnapshot): MessagingConfig {
  const { appId, namespace } = view;
  if (appId === undefined) return noMessaging;
  const { subscriptions, resiliencies, routes } = snapshot.messaging;
  const isOurs = (object: Scoped<unknown>) => object.namespace === namespace && (object.scopes.length === 0 || object.scopes.includes(appId));
  return {
    appId,
    components: messagingComponents(view, snapshot).map(({ told }) => told),
    subscriptions: subscriptions.filter(isOurs).map(
      ({ spec }): Subscription => ({
        pubsubname: spec.pubsubname,
        topic: spec.topic,
        rules: (spec.routes?.rules ?? []).map(({ match = '', path }) => ({ match, path })),
        defaultPath: spec.route ?? spec.routes?.default ?? '',
        deadLetterTopic: spec.deadLetterTopic ?? '',
        bulk: spec.bulkSubscribe?.enabled
          ? { maxMessagesCount: spec.bulkSubscribe.maxMessagesCount ?? 100, maxAwaitDurationMs: spec.bulkSubscribe.maxAwaitDurationMs ?? 1_000 }
          : undefined,
        metadata: { ...spec.metadata },
        type: 'DECLARATIVE',
      }),
    ),
    topicPolicies: topicPoliciesOf(namespace, snapshot),
    canaries: routes.filter((route) => route.namespace === namespace).flatMap((route) => canaryRoute(route, view, snapshot)),
    resiliency: Object.assign({}, ...resiliencies.filter(isOurs).map(({ spec }) => resiliencyPolicies(spec))) as Record<string, ResiliencyPolicy>,
  };
}

export function pubSubComponent(component: MeshSnapshot['messaging']['components'][number], snapshot: MeshSnapshot): ResolvedComponent {
  const { name, namespace, spec } = component;
  const metadata: Record<string, string> = {};
  const secretNames: Record<string, string> = {};
  const secrets = new Map<string, Uint8Array>();
  for (const { name: key, value, secretKeyRef } of spec.metadata ?? []) {
    if (secretKeyRef === undefined) {
      metadata[key] = String(value ?? '');
      continue;
    }
    secretNames[key] = componentSecretName(component, key);
    const secret = snapshot.secrets.get(`${namespace}/${secretKeyRef.name}`)?.[secretKeyRef.key ?? secretKeyRef.name];
    if (secret !== undefined) secrets.set(secretNames[key], Buffer.from(Buffer.from(secret, 'base64').toString('utf8').trim()));
  }
  const hasAddress = metadata['address'] !== undefined || secretNames['address'] !== undefined;
  if (spec.type === 'pubsub.mizzen' && !hasAddress && snapshot.brokerAddress !== undefined) metadata['address'] = snapshot.brokerAddress;
  return { namespace, name, told: { name, type: spec.type, metadata, secretNames }, secrets };
}

/** Of all Components of a namespace. */
export function topicPoliciesOf(namespace: string, snapshot: MeshSnapshot): TopicPolicy[] {
  return snapshot.authorizationPolicies.filter((policy) => policy.namespace === namespace && isForTopics(policy.spec)).flatMap(topicPolicies);
}

function topicPolicies({ namespace, name, spec }: Configured<AuthorizationPolicySpec>): TopicPolicy[] {
  const targets = [...(spec.targetRef ? [spec.targetRef] : []), ...(spec.targetRefs ?? [])];
  // Every combination of a `from` and a `to`; what is absent is anything (istio/api authorization_policy.proto).
  const rules = (spec.rules ?? []).flatMap(({ from, to }): TopicRule[] =>
    (from?.length ? from : [{}]).flatMap(({ source }) =>
      (to?.length ? to : [{}]).map(({ operation }) => ({
        principals: source?.principals ?? [],
        namespaces: source?.namespaces ?? [],
        operations: operation?.methods ?? [],
        topics: operation?.paths ?? [],
      })),
    ),
  );
  return targets.map((target) => ({ name: `${namespace}/${name}`, pubsub: target.name ?? '', action: spec.action === 'DENY' ? 'DENY' : 'ALLOW', rules }));
}

function canaryRoute({ namespace, name, spec }: Configured<MessageRouteSpec>, view: ProxyView, snapshot: MeshSnapshot): CanaryRoute[] {
  const host = resolveHost(spec.subscriber.service, namespace, snapshot);
  if (!view.inbound.some((inbound) => implementedService(inbound, view, snapshot).service?.hostname === host)) return [];
  const service = snapshot.servicesByHostname.get(host);
  const port = spec.subscriber.port ?? service?.ports[0]?.number ?? 80;
  const subsets = snapshot.destinationRules.find((rule) => resolveHost(rule.spec.host, rule.namespace, snapshot) === host)?.spec.subsets ?? [];
  const isOf = (subset: string) => {
    const labels = subsets.find((candidate) => candidate.name === subset)?.labels;
    return labels !== undefined && Object.entries(labels).every(([label, value]) => view.labels[label] === value);
  };
  return [
    {
      name: `${namespace}/${name}`,
      pubsub: spec.pubsub,
      topic: spec.topic,
      isCanary: spec.routes.some(({ subset }) => isOf(subset)),
      routes: spec.routes.map(({ subset, weight, headers }) => ({
        headers: Object.fromEntries(Object.entries(headers ?? {}).map(([header, value]) => [header.toLowerCase(), value])),
        weight: weight ?? 0,
        cluster: outboundClusterName(port, subset, host),
        authority: host,
      })),
    },
  ];
}

function resiliencyPolicies({ policies, targets }: ResiliencySpec): Record<string, ResiliencyPolicy> {
  return Object.fromEntries(
    Object.entries(targets?.components ?? {}).flatMap(([component, { inbound }]) => {
      if (inbound === undefined) return [];
      const timeout = inbound.timeout === undefined ? undefined : (policies?.timeouts?.[inbound.timeout] ?? inbound.timeout);
      const retry = inbound.retry === undefined ? undefined : policies?.retries?.[inbound.retry];
      return [
        [
          component,
          {
            timeoutMs: timeout === undefined ? undefined : parseDurationMs(timeout),
            retry: retry && {
              policy: retry.policy ?? 'constant',
              durationMs: (retry.duration && parseDurationMs(retry.duration)) || (retry.policy === 'exponential' ? 500 : 5_000),
              maxIntervalMs: (retry.maxInterval && parseDurationMs(retry.maxInterval)) || 60_000,
              maxRetries: retry.maxRetries ?? -1,
            },
          },
        ],
      ];
    }),
  );
}
