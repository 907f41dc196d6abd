/* SPDX-License-Identifier: MIT */
#include "mmu/mmu.h"

#include <errno.h>

#include "base/err.h"

void gmem_mmu_init(struct gmem_mmu *mmu)
{
	*mmu = (struct gmem_mmu){ .no_tables = false };
	gmem_rwlock_init(&mmu->lock, GMEM_LOCK_MMU);
	gmem_table_pool_init(&mmu->pool);
	gmem_epoch_init(&mmu->epoch);
}

void gmem_mmu_destroy(struct gmem_mmu *mmu)
{
	gmem_epoch_destroy(&mmu->epoch);
	gmem_table_pool_destroy(&mmu->pool);
	gmem_rwlock_destroy(&mmu->lock);
}

void gmem_mmu_add_vcpu(struct gmem_mmu *mmu, struct gmem_vcpu *vcpu)
{
	*vcpu = (struct gmem_vcpu){ .mmu = mmu };
	gmem_epoch_add(&mmu->epoch, &vcpu->reader);
}

void gmem_mmu_del_vcpu(struct gmem_vcpu *vcpu)
{
	gmem_epoch_del(&vcpu->mmu->epoch, &vcpu->reader);
	gmem_table_flush(&vcpu->mmu->pool, &vcpu->cache);
}

uint64_t gmem_mmu_table_bytes(struct gmem_mmu *mmu)
{
	uint64_t used;

	pthread_mutex_lock(&mmu->pool.m);
	used = mmu->pool.used;
	pthread_mutex_unlock(&mmu->pool.m);
	return used << GMEM_PAGE_SHIFT;
}

int gmem_mmu_reload(struct gmem_vcpu *vcpu)
{
	struct gmem_mmu *mmu = vcpu->mmu;
	gmem_pte *root, *none = NULL;

	if (vcpu->root)
		return 0;
	if (!atomic_load(&mmu->root)) {
		root = gmem_table_new(&mmu->pool);
		if (!root)
			return gmem_err_sys(-ENOMEM, "second-stage tables");
		if (!atomic_compare_exchange_strong(&mmu->root, &none, root))
			gmem_table_free_tree(&mmu->pool, root, 1);
	}
	vcpu->root = atomic_load(&mmu->root);
	return 0;
}

bool gmem_vcpu_cancelled(struct gmem_vcpu *vcpu)
{
	return atomic_load_explicit(&vcpu->cancel, memory_order_relaxed) && atomic_exchange(&vcpu->cancel, false);
}
