import { messageOf } from '@mizzen/common';
import type { Subscription } from '@mizzen/envoy-api';
import { routing } from './event-router.ts';

/** What an application declares at /dapr/subscribe (docs.dapr.io, "Declarative, streaming, and programmatic subscription methods"). */
export interface DeclaredSubscriptions {
  readonly subscriptions: readonly Subscription[];
  /** Why others are left out. */
  readonly problems: readonly string[];
}

/** Messages of one bulk; a larger number counts as this. */
const maxBulkMessages = 10_000;
const defaultBulkMessages = 100;
const defaultBulkWaitMs = 1_000;
const maxProblems = 10;

/** Reads the list, in both forms: `route`, or `routes` with rules. An entry with an error is left out alone. Throws Error for what is not a list. */
export function readDeclared(value: unknown): DeclaredSubscriptions {
  if (value === null) return { subscriptions: [], problems: [] };
  if (!Array.isArray(value)) throw new Error('it is not a list');
  const subscriptions: Subscription[] = [];
  const problems: string[] = [];
  for (const [i, entry] of value.entries()) {
    try {
      subscriptions.push(subscriptionIn(objectIn(entry, 'it')));
    } catch (error) {
      if (problems.length < maxProblems) problems.push(`entry ${i}: ${messageOf(error)}`);
    }
  }
  return { subscriptions, problems };
}

/** `null` is the same as absent, as in Dapr's own decoder. */
function subscriptionIn(entry: Readonly<Record<string, unknown>>): Subscription {
  const pubsubname = textIn(entry['pubsubname'] ?? entry['pubsubName'], 'pubsubname');
  const topic = textIn(entry['topic'], 'topic');
  if (pubsubname === '' || topic === '') throw new Error('it needs pubsubname and topic');
  const routes = objectIn(entry['routes'] ?? {}, 'routes');
  const rules = listIn(routes['rules'] ?? [], 'routes.rules').map((rule) => {
    const { match, path } = objectIn(rule, 'a rule');
    return { match: textIn(match, 'match'), path: textIn(path, 'path') };
  });
  const bulk = objectIn(entry['bulkSubscribe'] ?? {}, 'bulkSubscribe');
  return {
    pubsubname,
    topic,
    ...routing(rules, textIn(entry['route'], 'route') || textIn(routes['default'], 'routes.default')),
    deadLetterTopic: textIn(entry['deadLetterTopic'], 'deadLetterTopic'),
    bulk:
      bulk['enabled'] === true
        ? {
            maxMessagesCount: Math.min(maxBulkMessages, countIn(bulk['maxMessagesCount'], defaultBulkMessages)),
            maxAwaitDurationMs: countIn(bulk['maxAwaitDurationMs'], defaultBulkWaitMs),
          }
        : undefined,
    metadata: metadataIn(objectIn(entry['metadata'] ?? {}, 'metadata')),
    type: 'PROGRAMMATIC',
  };
}

function metadataIn(fields: Readonly<Record<string, unknown>>): Record<string, string> {
  const metadata: [string, string][] = [];
  for (const [name, value] of Object.entries(fields)) {
    if (value === null) continue;
    if (typeof value === 'object') throw new Error(`metadata.${name.slice(0, 100)} must be a text`);
    metadata.push([name, String(value)]);
  }
  return Object.fromEntries(metadata);
}

function objectIn(value: unknown, name: string): Readonly<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new Error(`${name} must be an object`);
  return value as Record<string, unknown>;
}

function listIn(value: unknown, name: string): readonly unknown[] {
  if (!Array.isArray(value)) throw new Error(`${name} must be a list`);
  return value;
}

function textIn(value: unknown, name: string): string {
  if (value === undefined || value === null) return '';
  if (typeof value !== 'string') throw new Error(`${name} must be a text`);
  return value;
}

const countIn = (value: unknown, otherwise: number) => (typeof value === 'number' && Number.isSafeInteger(value) && value > 0 ? value : otherwise);
