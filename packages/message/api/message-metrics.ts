import type { Subscription } from '@mizzen/envoy-api';
import type { ProxyCounters } from '@mizzen/proxy/telemetry/proxy-counters';
import { escapeLabel } from '@mizzen/proxy/telemetry/request-metrics';
import type { DeliveryStatus } from './app-channel.ts';

/** Topics come from applications: beyond so many, they are counted together. */
const maxSeries = 2_000;

/** What is counted of messages, by component, topic and group, among the proxy's other metrics. */
export class MessageMetrics {
  readonly #counters: ProxyCounters;
  /** Names of series by what they are made of. */
  readonly #names: Map<string, string>;

  constructor(counters: ProxyCounters) {
    this.#counters = counters;
    this.#names = new Map();
  }

  /** `result`: stored, refused, not_stored, invalid. */
  published(pubsub: string, topic: string, result: string, count: number): void {
    this.#add('messages_published_total', { pubsub, topic, result }, count);
  }

  delivered(subscription: Subscription, group: string, status: DeliveryStatus, target: string, ms: number): void {
    this.#add('messages_delivered_total', { ...labelsOf(subscription, group), status: status.toLowerCase(), ...(target === '' ? {} : { subset: target }) }, 1);
    this.#add('message_delivery_milliseconds_total', labelsOf(subscription, group), Math.round(ms * 1000) / 1000);
  }

  dropped(subscription: Subscription, group: string): void {
    this.#add('messages_dropped_total', labelsOf(subscription, group), 1);
  }

  deadLettered(subscription: Subscription, group: string): void {
    this.#add('messages_dead_lettered_total', labelsOf(subscription, group), 1);
  }

  inFlight(subscription: Subscription, group: string, change: number): void {
    this.#add('messages_in_flight', labelsOf(subscription, group), change);
  }

  lag(subscription: Subscription, group: string, lag: number): void {
    this.#set('message_lag', labelsOf(subscription, group), lag);
  }

  brokerUp(pubsub: string, isUp: boolean): void {
    this.#set('message_broker_up', { pubsub }, isUp ? 1 : 0);
  }

  #add(name: string, labels: Readonly<Record<string, string>>, by: number): void {
    this.#counters.count(this.#series(name, labels), by);
  }

  #set(name: string, labels: Readonly<Record<string, string>>, value: number): void {
    this.#counters.series.set(this.#series(name, labels), value);
  }

  #series(name: string, labels: Readonly<Record<string, string>>): string {
    let key = name;
    for (const label in labels) key += `\0${labels[label]}`;
    const known = this.#names.get(key);
    if (known !== undefined) return known;
    const own = seriesOf(name, labels);
    if (!this.#counters.series.has(own) && this.#counters.series.size >= maxSeries) return seriesOf(name, { ...labels, topic: 'other' });
    this.#names.set(key, own);
    return own;
  }
}

function labelsOf({ pubsubname, topic }: Subscription, group: string): Record<string, string> {
  return { pubsub: pubsubname, topic, group };
}

function seriesOf(name: string, labels: Readonly<Record<string, string>>): string {
  return `${name}{${Object.entries(labels)
    .map(([label, value]) => `${label}="${escapeLabel(value)}"`)
    .join(',')}}`;
}
