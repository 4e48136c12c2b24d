"""The rollout: all cells of a batch advance together, and rows split where edits differ."""
