/** What the routes need of a running agent for its upkeep, one method an endpoint. As AgentApi, which it is a part of. */
import type { BlobReader } from './blob-reader.ts'
import type { BackupRequest, DoctorResult } from './upkeep-contract.ts'

export interface UpkeepApi {
  doctor(signal: AbortSignal): Promise<DoctorResult>
  /** Everything that makes this node itself, without its content. */
  backup(request: BackupRequest): Promise<BlobReader>
  /** As `/metrics` on the loopback HTTP server, which may be off. */
  metrics(): Promise<{ text: string }>
}
