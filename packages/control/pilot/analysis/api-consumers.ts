import { describeOrigin } from '@mizzen/common';
import { apisOf } from '../apis/listener-filters.ts';
import { mayRead } from '../generate/served-gateways.ts';
import type { ProxyView } from '../proxy-view.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import type { Finding } from './finding.ts';

/**
 * Consumers that an Api allows and that its proxies do not know: they do not exist, or are of a namespace that has not granted the proxies to read them
 * (../generate/generic-secrets.ts). Their requests are refused, and the writer of the Api is told why.
 */
export function apiConsumerFindings(snapshot: MeshSnapshot, views: readonly ProxyView[]): Finding[] {
  const known = new Set((snapshot.consumers.consumers ?? []).map(({ name }) => name ?? ''));
  return snapshot.apiConfigs.flatMap((api): Finding[] => {
    const allowed = api.spec.policies?.authentication?.allow?.consumers ?? [];
    const object = `Api ${api.namespace}/${api.name}`;
    return allowed.flatMap((text, i): Finding[] => {
      // A subject of a token is ISSUER#SUBJECT: it needs no Consumer.
      if (text.includes('#')) return [];
      const [namespace, name] = text.includes('/') ? (text.split('/') as [string, string]) : [api.namespace, text];
      const path = `spec.policies.authentication.allow.consumers[${i}]`;
      const report = (message: string): Finding[] => [
        {
          ...{ code: 'MZ0025', level: 'warning', object, path },
          place: api.origin.source === 'file' ? describeOrigin(api.origin, path) : '',
          message: `${object}: the Consumer ${namespace}/${name} ${message}, so its requests are refused.`,
        },
      ];
      if (!known.has(`${namespace}/${name}`)) return report('does not exist');
      const consumer = { group: 'mizzen.dev', kind: 'Consumer', namespace, name };
      const reader = readersOf(api.namespace, api.name, snapshot, views).find(
        (reader) => reader !== namespace && !mayRead({ namespace: reader }, consumer, snapshot),
      );
      if (reader === undefined) return [];
      return report(
        `cannot be read by proxies of namespace ${reader} without a ReferenceGrant in ${namespace}: from group mizzen.dev, kind Workload, namespace ${reader}, to group mizzen.dev, kind Consumer`,
      );
    });
  });
}

/** The namespaces of the connected proxies that answer for an Api; its own while none is connected. */
function readersOf(namespace: string, name: string, snapshot: MeshSnapshot, views: readonly ProxyView[]): string[] {
  const serving = views.filter(
    (view) => view.type === 'gateway' && apisOf(view, snapshot).edge.some(({ api }) => api.namespace === namespace && api.name === name),
  );
  return serving.length === 0 ? [namespace] : [...new Set(serving.map((view) => view.namespace))];
}
