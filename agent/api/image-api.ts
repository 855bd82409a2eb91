/** What the routes need of a running agent for images, one method an endpoint. As AgentApi, which it is a part of. */
import type { ImageDetail, ImageHistory, ImageList, ImageRemoved, OciConf } from './image-contract.ts'

type Awaitable<T> = T | Promise<T>

export interface ImageApi {
  /** Best first; all, the last moved first, when there are no words. */
  list(words: string, limit: number, network: string | undefined, signal: AbortSignal): Awaitable<ImageList>
  /** `ref` is `NETWORK/REPOSITORY[:TAG]`, as clients write it. */
  show(ref: string, signal: AbortSignal): Awaitable<ImageDetail>
  history(ref: string, limit: number): Awaitable<ImageHistory>
  /** Deletes the tag for everybody in the network. */
  remove(ref: string, signal: AbortSignal): Awaitable<ImageRemoved>
  conf(program: OciConf['program']): Awaitable<OciConf>
}
