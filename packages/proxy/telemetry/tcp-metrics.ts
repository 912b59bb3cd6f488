import type { PeerMetadata } from './peer-metadata.ts';
import { type CommonLabels, labelText, type ServiceLabel } from './request-metrics.ts';

/** The labels of Istio's TCP metrics: those of requests without what only a request has. */
export interface TcpLabels extends CommonLabels {
  readonly source: PeerMetadata;
  readonly destination: PeerMetadata;
  readonly service: ServiceLabel | undefined;
}

/** Istio's four TCP metrics of one label set. */
export class TcpMetrics {
  readonly labels: string;
  opened: number;
  closed: number;
  receivedBytes: number;
  sentBytes: number;

  constructor(labels: string) {
    this.labels = labels;
    this.opened = 0;
    this.closed = 0;
    this.receivedBytes = 0;
    this.sentBytes = 0;
  }

  /** Bytes received from the client and sent to it. */
  close(receivedBytes: number, sentBytes: number): void {
    this.closed++;
    this.receivedBytes += receivedBytes;
    this.sentBytes += sentBytes;
  }
}

const maxSeries = 1_000;

export class TcpMetricsTable {
  readonly #series: Map<string, TcpMetrics>;
  readonly #overflow: TcpMetrics;

  constructor() {
    this.#series = new Map();
    this.#overflow = new TcpMetrics('mizzen_overflow="true"');
  }

  /** Counts a connection that has been opened; its end is told to what is returned. */
  open(labels: TcpLabels): TcpMetrics {
    const text = labelText(labels, [['request_protocol', 'tcp']], []);
    let metrics = this.#series.get(text);
    if (metrics === undefined) {
      metrics = this.#series.size >= maxSeries ? this.#overflow : new TcpMetrics(text);
      if (metrics !== this.#overflow) this.#series.set(text, metrics);
    }
    metrics.opened++;
    return metrics;
  }

  *[Symbol.iterator](): Iterator<TcpMetrics> {
    yield* this.#series.values();
    if (this.#overflow.opened > 0) yield this.#overflow;
  }
}
