/** What the routes need of a running agent for its room, one method an endpoint. As AgentApi, which it is a part of. */
import type { ContentList, ContentRequest, GcRequest, GcResult, PinList, PinView } from './room-contract.ts'

type Awaitable<T> = T | Promise<T>

export interface RoomApi {
  pins(): Awaitable<PinList>
  /** Brings what is missing of it, and keeps it. `onProgress` may be called as often as is handy. */
  pin(
    ref: string,
    onProgress: (doneBytes: number, totalBytes: number) => void,
    signal: AbortSignal,
    network?: string,
  ): Promise<PinView>
  unpin(ref: string, network?: string): Awaitable<PinView>
  content(request: ContentRequest, signal: AbortSignal): Awaitable<ContentList>
  gc(request: GcRequest, signal: AbortSignal): Awaitable<GcResult>
}
