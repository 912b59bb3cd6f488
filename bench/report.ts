import type { Measurement } from './measure.ts';

const metrics = {
  cpu_us_per_request: 'cpuUsPerRequest',
  requests_per_second: 'requestsPerSecond',
  p50_ms: 'p50Ms',
  p99_ms: 'p99Ms',
  rss_mb: 'rssMb',
} as const;

const round = (value: number) => Math.round(value * 100) / 100;

const milliseconds = (value: number) => (Number.isNaN(value) ? '' : value.toFixed(2));

export function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
}

function middle(list: readonly Measurement[]): Measurement {
  const of = (read: (measurement: Measurement) => number) => median(list.map(read));
  return {
    cpuUsPerRequest: of((m) => m.cpuUsPerRequest),
    requestsPerSecond: of((m) => m.requestsPerSecond),
    p50Ms: of((m) => m.p50Ms),
    p99Ms: of((m) => m.p99Ms),
    rssMb: of((m) => m.rssMb),
    errors: list.reduce((sum, m) => sum + m.errors, 0),
  };
}

/** Gathers results: one JSON line per case, metric and peer, or two tables at the end. */
export class Report {
  readonly #isJson: boolean;
  readonly #rows: string[];
  readonly #aims: string[];

  constructor(isJson: boolean) {
    this.#isJson = isJson;
    this.#rows = [];
    this.#aims = [];
  }

  loads(name: string, results: ReadonlyMap<string, readonly Measurement[]>, aims: Readonly<Record<string, number>>): void {
    const medians = new Map([...results].map(([candidate, list]) => [candidate, middle(list)]));
    const ours = medians.get('mizzen');
    if (ours === undefined) return;
    for (const [candidate, m] of medians) {
      // The ratio of one round, in which both met the same machine; then the median of those.
      const ratio = median(results.get('mizzen')!.map((own, i) => own.cpuUsPerRequest / (results.get(candidate)![i]?.cpuUsPerRequest ?? Number.NaN)));
      for (const [metric, field] of Object.entries(metrics)) {
        const isCpu = metric === 'cpu_us_per_request';
        if (candidate !== 'mizzen')
          this.#line({
            case: name,
            metric,
            ours: round(ours[field]),
            peer: round(m[field]),
            peerName: candidate,
            ratio: round(isCpu ? ratio : ours[field] / m[field]),
            aim: isCpu ? (aims[candidate] ?? null) : null,
          });
      }
      this.#rows.push(
        `| ${name} | ${candidate} | ${m.cpuUsPerRequest.toFixed(1)} | ${candidate === 'mizzen' ? '1' : ratio.toFixed(2)} | ${m.requestsPerSecond.toFixed(0)} | ${milliseconds(m.p50Ms)} | ${milliseconds(m.p99Ms)} | ${m.rssMb.toFixed(0)} |${m.errors > 0 ? ` ${m.errors} errors` : ''}`,
      );
      const aim = aims[candidate];
      if (aim !== undefined)
        this.#aims.push(`| ${name}: CPU per request against ${candidate} | <= ${round(aim)} | **${ratio.toFixed(2)}**${ratio <= aim ? '' : ' (missed)'} |`);
    }
  }

  latency(results: ReadonlyMap<string, readonly Measurement[]>): void {
    const p99 = (name: string) => median(results.get(name)!.map((m) => m.p99Ms));
    const p50 = (name: string) => median(results.get(name)!.map((m) => m.p50Ms));
    const added = (name: string) => p99(name) - p99('origin');
    const ratio = added('mizzen') / added('envoy');
    for (const name of ['envoy', 'mizzen'])
      this.#rows.push(
        `| latency at half of Envoy's saturation | ${name} | | | ${median(results.get(name)!.map((m) => m.requestsPerSecond)).toFixed(0)} | ${p50(name).toFixed(2)} | ${p99(name).toFixed(2)} | |`,
      );
    this.#line({
      case: 'latency',
      metric: 'added_p99_ms',
      ours: round(added('mizzen')),
      peer: round(added('envoy')),
      peerName: 'envoy',
      ratio: round(ratio),
      aim: 1,
    });
    this.#aims.push(
      `| added latency, p99, at half of saturation, against envoy | <= 1 | **${ratio.toFixed(2)}** (${added('mizzen').toFixed(2)} against ${added('envoy').toFixed(2)} ms)${ratio <= 1 ? '' : ' (missed)'} |`,
    );
  }

  value(name: string, measured: readonly number[], aim: number): void {
    const value = median(measured);
    this.#line({ case: name, metric: name, ours: round(value), peer: null, peerName: null, ratio: null, aim });
    this.#aims.push(`| ${name} | <= ${aim} | **${value.toFixed(0)}**${value <= aim ? '' : ' (missed)'} |`);
  }

  /** Megabytes per second: at least `aim` times the peer's. */
  throughput(name: string, results: ReadonlyMap<string, readonly number[]>, peers: readonly string[], aim: number): void {
    const ours = median(results.get('mizzen')!);
    for (const [candidate, list] of results)
      this.#rows.push(`| ${name} | ${candidate} | | ${(ours / median(list)).toFixed(2)} | ${median(list).toFixed(0)} MB/s | | | |`);
    const measured = peers.filter((peer) => results.has(peer)).map((peer) => [peer, ours / median(results.get(peer)!)] as const);
    for (const [peer, ratio] of measured)
      this.#line({
        case: name,
        metric: 'megabytes_per_second',
        ours: round(ours),
        peer: round(median(results.get(peer)!)),
        peerName: peer,
        ratio: round(ratio),
        aim,
      });
    const best = Math.max(...measured.map(([, ratio]) => ratio));
    const said = measured.map(([peer, ratio]) => `${ratio.toFixed(2)} of ${peer}'s`).join(', ');
    this.#aims.push(`| ${name}: throughput against ${peers.join(' or ')} | >= ${aim} | **${said}**${best >= aim ? '' : ' (missed)'} |`);
  }

  print(): void {
    if (this.#isJson) return;
    process.stdout.write(
      `| case | proxy | CPU us/request | ours / it | requests/s | p50 ms | p99 ms | RSS MB |\n|---|---|---|---|---|---|---|---|\n${this.#rows.join('\n')}\n\n`,
    );
    process.stdout.write(`| aim | at most | measured |\n|---|---|---|\n${this.#aims.join('\n')}\n`);
  }

  #line(line: object): void {
    if (this.#isJson) process.stdout.write(`${JSON.stringify(line)}\n`);
  }
}
