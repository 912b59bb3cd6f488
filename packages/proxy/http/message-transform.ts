import type { Fields } from '../message/fields.ts';
import type { ResponseHead } from '../message/response-head.ts';

/** What a filter does to the content of one exchange, both ways. Made by a filter's `onRequest`, which changes the request's head itself. */
export interface MessageTransform {
  /** Of answers in the form that the client expects. */
  readonly contentType: string;
  requestData(slice: Buffer): Buffer;
  /** What is left when the request ends. Throws InvalidContent when the request's content makes no sense. */
  requestEnd(): Buffer;
  /** Changes the answer's head. `hold`: the head waits for the end of the answer. */
  responseHead(head: ResponseHead): 'send' | 'hold';
  responseData(slice: Buffer): Buffer;
  /** What ends the answer, instead of its trailers. Head is what `responseHead` was given; a head that was held may still change. */
  responseEnd(head: ResponseHead, trailers: Fields): { readonly data: Buffer; readonly trailers: Fields };
}

/** Content that a filter cannot make sense of: a request is answered with 400, an answer with 502. */
export class InvalidContent extends Error {}
