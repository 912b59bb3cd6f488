/** What a proxy and the thread of a user's filter say to each other. */
export interface SentRequest {
  readonly method: string;
  readonly path: string;
  readonly authority: string;
  readonly headers: readonly (readonly [string, string])[];
  readonly remoteAddress: string;
  readonly consumer: { readonly name: string; readonly groups: readonly string[]; readonly claims: Readonly<Record<string, unknown>> } | undefined;
  readonly principal: string;
}

export interface ScriptCall {
  readonly id: number;
  readonly phase: 'request' | 'response';
  /** JSON of the configuration: compiled once by the thread. */
  readonly config: string;
  readonly request: SentRequest;
  readonly response: { readonly status: number; readonly headers: readonly (readonly [string, string])[] } | undefined;
}

export type ScriptResult =
  | {
      readonly kind: 'continue';
      /** undefined: as they were. */
      readonly path: string | undefined;
      readonly status: number | undefined;
      readonly headers: readonly (readonly [string, string])[] | undefined;
    }
  | { readonly kind: 'answer'; readonly status: number; readonly body: string; readonly headers: readonly (readonly [string, string])[] }
  | { readonly kind: 'error'; readonly message: string };

export type FromThread =
  | { readonly kind: 'loaded'; readonly name: string; readonly hasRequest: boolean; readonly hasResponse: boolean }
  | { readonly kind: 'failed'; readonly message: string }
  | { readonly kind: 'result'; readonly id: number; readonly result: ScriptResult };

export interface ThreadData {
  readonly file: string;
  /** Two numbers: the call whose code is running, 0 for none; and one that grows while the thread is well. What it cannot say when it hangs. */
  readonly running: SharedArrayBuffer;
}

export const heartbeatMs = 100;
