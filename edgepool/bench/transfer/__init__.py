"""What transfers cost and reach here, beside bare copies and what others do (`edgepool bench transfer`)."""
