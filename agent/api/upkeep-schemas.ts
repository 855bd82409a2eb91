/** The types of upkeep-contract.ts as schemas: as schemas.ts, which they are a part of. */
import { z } from 'zod'
import type { BackupRequest, DoctorResult } from './upkeep-contract.ts'

/** As of other passphrases. */
const PASSPHRASE_LENGTH_MIN = 8
const PASSPHRASE_LENGTH_MAX = 1_024

export const backupRequest: z.ZodType<BackupRequest> = z.strictObject({
  passphrase: z
    .string()
    .min(PASSPHRASE_LENGTH_MIN, `must have at least ${PASSPHRASE_LENGTH_MIN} characters`)
    .max(PASSPHRASE_LENGTH_MAX),
})

export const doctorResult: z.ZodType<DoctorResult> = z.object({
  checks: z.array(
    z.object({
      id: z.string(),
      name: z.string(),
      state: z.enum(['ok', 'warning', 'failed']),
      message: z.string(),
      next: z.string().exactOptional(),
    }),
  ),
})

export const metrics = z.object({ text: z.string() })
